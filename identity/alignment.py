"""A face cut out of a photo upright, at the size that a sampler wants, and put back where it was.

The square is FFHQ's, from the eyes and the mouth alone. Coordinates are continuous: pixel i covers i to i + 1, its
centre lies at i + 1/2. Points of a face are [3, 2], x and y of the subject's right eye, left eye and mouth; starting at
the right eye makes the square's x axis run along the face, so the crop is upright however the head is rolled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SMALLEST = 4  # pixels between the eyes, or 0.9 times those between eyes and mouth: less says nothing of a face
RIGHT, LEFT, MOUTH = 33, 263, (61, 291)  # a corner of each eye and both of the mouth among MediaPipe's 478 points


@dataclass(frozen=True, eq=False)
class FaceTransform:
    """Where one crop comes from. ``matrix`` [2, 3], float64, takes a place of the crop (x, y, 1) to its place in the
    photo.
    """

    frame: int  # which photo of the batch
    face: int  # which face of it
    matrix: torch.Tensor
    size: int  # the crop's side in pixels

    def for_size(self, size: int) -> torch.Tensor:
        """The matrix of a crop that was brought to another size, such as by an upscaler."""
        return self.matrix * torch.tensor([self.size / size, self.size / size, 1], dtype=self.matrix.dtype)


@dataclass(frozen=True)
class FaceTransforms:
    """The crops of a batch of photos: ``faces[i]`` belongs to crop i."""

    frames: int
    height: int
    width: int
    faces: tuple[FaceTransform, ...]


# --- geometry


def points_of_mesh(landmarks, connections: dict[str, Sequence]) -> torch.Tensor:
    """The points [3, 2] of a face from MediaPipe's landmarks [478, 2] in pixels.

    An eye is the mean of its contour: an eye that closes or looks aside moves it little. ``connections``: pairs of
    vertices by the names "right_eye" and "left_eye", the subject's. Raises ValueError when these are not MediaPipe's.
    """
    landmarks = torch.as_tensor(landmarks, dtype=torch.float64)
    eyes = []
    for name, corner in (("right_eye", RIGHT), ("left_eye", LEFT)):
        contour = sorted({vertex for pair in connections[name] for vertex in pair})
        if corner not in contour:
            raise ValueError(f"'{name}' is not MediaPipe's, which has the vertex {corner}")
        eyes.append(landmarks[contour].mean(0))
    return torch.stack([*eyes, landmarks[list(MOUTH)].mean(0)])


def points_of_five(points) -> torch.Tensor:
    """The points [3, 2] of a face from five [5, 2]: eyes, nose, corners of the mouth, each the subject's right one
    first.
    """
    points = torch.as_tensor(points, dtype=torch.float64)
    return torch.stack([points[0], points[1], points[3:5].mean(0)])


def turned(vector: torch.Tensor) -> torch.Tensor:
    """A vector [2] turned by a quarter, from x towards y."""
    return torch.stack([-vector[1], vector[0]])


def square(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The centre [2] of a face's square and half of its upper side [2], from the points [3, 2].

    The direction is the mean of what the eyes and what eyes and mouth say; half the side is the larger of 2 eye
    distances and 1.8 distances from eyes to mouth, so a face in profile gets as large a square as from the front.
    """
    between, eyes = points[1] - points[0], (points[0] + points[1]) / 2
    down = points[2] - eyes
    along = between - turned(down)
    half = torch.maximum(2 * between.norm(), 1.8 * down.norm())
    return eyes + 0.1 * down, along / along.norm() * half


def usable(points: torch.Tensor) -> bool:
    """Whether the points are finite, far enough apart (``SMALLEST``) and say where up is."""
    between, down = points[1] - points[0], points[2] - (points[0] + points[1]) / 2
    reach = max(float(between.norm()), 0.9 * float(down.norm()))
    return math.isfinite(reach) and reach >= SMALLEST and float((between - turned(down)).norm()) > 0.1 * reach


def crop_matrix(points: torch.Tensor, size: int) -> torch.Tensor:
    """[2, 3]: places of the crop of size x size pixels -> places of the photo."""
    centre, along = square(points)
    down = turned(along)
    return torch.stack([2 * along / size, 2 * down / size, centre - along - down], 1)


def side(points: torch.Tensor) -> float:
    """Of a face's square, in pixels."""
    return 2 * float(square(points)[1].norm())


# --- several faces, several frames


def largest_first(faces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return sorted(faces, key=side, reverse=True)


def numbered(frames: Sequence[Sequence[torch.Tensor]], smoothing: float = 0.0) -> list[dict[int, torch.Tensor]]:
    """The faces of every frame by number, the largest 0.

    With ``smoothing`` above 0 the frames are a film: a face keeps its number as long as it moves by less than half of
    its square from one frame to the next, and its points are smoothing * those before + (1 - smoothing) * its own.
    Numbers begin anew where no face is where one was before, as behind a cut.
    """
    if not smoothing:
        return [dict(enumerate(largest_first(faces))) for faces in frames]
    film, known = [], {}  # known: the last place of every number
    for faces in frames:
        faces = largest_first(faces)
        near = sorted(
            (float((square(points)[0] - square(last)[0]).norm()), face, number)
            for face, points in enumerate(faces)
            for number, last in known.items()
        )
        names = {}
        for distance, face, number in near:
            if face not in names and number not in names.values() and distance < side(faces[face]) / 2:
                names[face] = number
        if faces and not names:
            known = {}
        before, current = (film[-1] if film else {}), {}
        for face, points in enumerate(faces):
            number = names.get(face, max([*known, *current], default=-1) + 1)
            stays = face in names and number in before
            current[number] = smoothing * before[number] + (1 - smoothing) * points if stays else points
        known = {**known, **current}
        film.append(current)
    return film


# --- sampling


def cut(photo: torch.Tensor, matrix: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The crop [size, size, C] of a photo [H, W, C], and [size, size], 1 where it lies inside the photo.

    Bicubic, kept from 0 to 1; the photo is mirrored beyond its border, and blurred first where the crop is smaller than
    its square. Only the square's surroundings are read.
    """
    height, width = photo.shape[:2]
    places = lattice(size, size).to(matrix) @ matrix[:, :2].T + matrix[:, 2]
    inside = ((places >= 0) & (places <= torch.tensor([width, height]).to(places))).all(-1)
    scale = float(matrix[:, 0].norm())
    sigma = soften(scale)
    margin = 3 + math.ceil(4 * sigma)
    low, high = (
        torch.stack([places.amin((0, 1)), places.amax((0, 1))]).floor().long() + torch.tensor([[-margin], [margin]])
    ).tolist()
    columns, rows = (
        mirrored(torch.arange(a, b + 1), length).to(photo.device) for a, b, length in zip(low, high, (width, height))
    )
    patch = blurred(working(photo[rows][:, columns]), sigma)
    return sampled(patch, places - torch.tensor(low).to(places)).clamp(0, 1), inside.to(patch)


def lattice(height: int, width: int, top: int = 0, left: int = 0) -> torch.Tensor:
    """The centres of pixels, [height, width, 2], x and y, float64."""
    y, x = torch.meshgrid(
        top + 0.5 + torch.arange(height, dtype=torch.float64),
        left + 0.5 + torch.arange(width, dtype=torch.float64),
        indexing="ij",
    )
    return torch.stack([x, y], -1)


def mirrored(index: torch.Tensor, length: int) -> torch.Tensor:
    """Indices of any size -> 0 to length - 1, as if the line went on mirrored at its ends."""
    index = index.remainder(2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def soften(scale: float) -> float:
    """The blur, in pixels of the source, before sampling every ``scale`` pixels: as wide as `scale`, the sampling's own
    width left out.
    """
    return 0.5 * math.sqrt(scale**2 - 1) if scale > 1 else 0.0


def working(picture: torch.Tensor) -> torch.Tensor:
    return picture if picture.dtype == torch.float64 else picture.float()


def blurred(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    """A picture [H, W, C] under a Gaussian of `sigma` pixels, its border repeated."""
    if not sigma:
        return picture
    reach = math.ceil(4 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(picture) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = F.pad(picture.movedim(-1, 0)[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0].movedim(0, -1)


def sampled(picture: torch.Tensor, places: torch.Tensor, mode: str = "bicubic") -> torch.Tensor:
    """What a picture [H, W, C] shows at places [h, w, 2] (x, y), its border repeated: [h, w, C]."""
    sides = torch.tensor(picture.shape[1::-1]).to(places)
    grid = (2 * places / sides - 1).to(picture)[None]
    return F.grid_sample(picture.movedim(-1, 0)[None], grid, mode, "border", align_corners=False)[0].movedim(0, -1)


# --- pasting


def paste(
    photo: torch.Tensor,
    crops: Sequence[torch.Tensor],
    matrices: Sequence[torch.Tensor],
    feather: float = 0.08,
    masks: Sequence[torch.Tensor] | None = None,
    opacity: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the crops [S, S, C] of one photo [H, W, C] back: (photo, share of what was replaced [H, W]).

    ``matrices``: those of the crops' own sizes. ``feather``: the border, in shares of a crop's side, over which it
    fades in. ``masks`` [h, w]: where a crop counts, laid over it. Pixels of share 0 stay as they are, bit for bit.
    Where crops overlap, the photo is blended once, with their mean, in which the crop counts most in whose middle the
    place is.
    """
    layers = []
    for number, (crop, matrix) in enumerate(zip(crops, matrices)):
        mask = None if masks is None else masks[number]
        layers.append(layer(crop, matrix, photo.shape[0], photo.shape[1], feather, mask, opacity))
    pasted, share = photo.clone(), torch.zeros(photo.shape[:2], dtype=working(photo[:0]).dtype, device=photo.device)
    layers = [
        (box, colour.to(share), weight.to(share), alpha.to(share))
        for box, colour, weight, alpha in layers
        if colour.numel()
    ]
    if not layers:
        return pasted, share
    tops, bottoms, lefts, rights = zip(*(box for box, *_ in layers))
    top, left = min(tops), min(lefts)
    place = slice(top, max(bottoms)), slice(left, max(rights))
    total, colours = torch.zeros_like(share[place]), torch.zeros_like(working(photo[place]))
    for (upper, lower, near, far), colour, weight, alpha in layers:
        part = slice(upper - top, lower - top), slice(near - left, far - left)
        colours[part] += weight[..., None] * colour
        total[part] += weight
        share[upper:lower, near:far] = torch.maximum(share[upper:lower, near:far], alpha)
    alpha, old = share[place][..., None], working(photo[place])
    new = old + alpha * (colours / total.clamp(min=torch.finfo(total.dtype).tiny)[..., None] - old)
    pasted[place] = torch.where(alpha > 0, new.to(photo), photo[place])
    return pasted, share


def layer(
    crop: torch.Tensor,
    matrix: torch.Tensor,
    height: int,
    width: int,
    feather: float,
    mask: torch.Tensor | None,
    opacity: float,
):
    """One crop as seen from a photo of this size: (top, bottom, left, right) of its box, and of the pixels in it colour
    [h, w, C], weight [h, w] among other crops and opacity [h, w].
    """
    size = crop.shape[0]
    corners = torch.tensor([[0, 0, 1], [size, 0, 1], [size, size, 1], [0, size, 1]], dtype=matrix.dtype) @ matrix.T
    left, top = corners.amin(0).floor().clamp(min=0).long().tolist()
    right, bottom = torch.minimum(corners.amax(0).ceil(), torch.tensor([width, height]).to(corners)).long().tolist()
    back = torch.linalg.inv(matrix[:, :2])
    places = (lattice(max(bottom - top, 0), max(right - left, 0), top, left).to(matrix) - matrix[:, 2]) @ back.T
    inward = torch.minimum(places, size - places) / size  # from each pair of the crop's borders, in shares of its side
    depth = inward.amin(-1)
    alpha = opacity * fade(inward, feather)
    picture = blurred(working(crop), soften(float(back[:, 0].norm())))
    if mask is not None:
        alpha = alpha * sampled(
            working(mask)[..., None].clamp(0, 1), places * torch.tensor(mask.shape[::-1]).to(places) / size, "bilinear"
        )[..., 0].to(alpha)
    colour = sampled(picture, places).clamp(0, 1)
    return (top, bottom, left, right), colour, alpha * depth.clamp(min=0) ** 2, alpha


def fade(inward: torch.Tensor, feather: float) -> torch.Tensor:
    """0 on a crop's border to 1 at `feather` from it, round at the corners: smoothstep of the distance to the square
    that is whole.
    """
    if not feather:
        return (inward.amin(-1) > 0).to(inward)
    x = (1 - (feather - inward).clamp(min=0).norm(dim=-1) / feather).clamp(min=0)
    return x * x * (3 - 2 * x)
