"""From boxes and prototypes to masks of the picture, and what every MASK may be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .candidates import candidates, frame, snap, to_image
from .contract import CELL
from .preprocess import Geometry

MODES = ["image", "prototype", "reference"]


@dataclass(frozen=True, eq=False)
class Segments:
    """What FastSAM found in one picture: masks bool [n, h, w], boxes [n, 4] in its pixels, scores [n] falling.

    image: the picture [h, w, RGB] itself, for prompts that look at it. best: the highest score of all candidates.
    """

    image: torch.Tensor
    masks: torch.Tensor
    boxes: torch.Tensor
    scores: torch.Tensor
    best: float


def segments(table: torch.Tensor, prototypes: torch.Tensor, geometry: Geometry, image: torch.Tensor, conf: float, iou: float,
             max_det: int, mode: str) -> Segments:
    """A [4 + C + P, N] and B [P, H/4, W/4] of a picture -> its segments. mode: image, prototype or reference (masks of this file)."""
    found = candidates(table, len(prototypes), conf, iou, max_det)
    reference = mode == "reference"
    inner = snap(found.boxes, frame(geometry, reference))
    boxes = to_image(inner, geometry, reference)
    draw = {"image": image_mask, "prototype": prototype_mask, "reference": reference_mask}[mode]
    masks = torch.zeros(len(boxes), geometry.height, geometry.width, dtype=torch.bool)
    for i, coefficients in enumerate(found.coefficients):
        logits = (coefficients @ prototypes.flatten(1)).view(prototypes.shape[1:])
        masks[i] = draw(logits, inner[i] if mode == "prototype" else boxes[i], geometry)
    return Segments(image, masks, boxes, found.scores, found.best)


def inside(box: torch.Tensor, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns j with x1 <= j < x2 of a box [4] on a grid."""
    x1, y1, x2, y2 = (math.ceil(side) for side in box.tolist())
    return slice(max(y1, 0), max(min(y2, height), 0)), slice(max(x1, 0), max(min(x2, width), 0))


def image_mask(logits: torch.Tensor, box: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Logits [H/4, W/4] > 0 at the centres of the picture's pixels, within a box in its pixels: bool [h, w].

    The centre of pixel (u, v) lies at input position ((u + 1/2) columns / w + left, (v + 1/2) rows / h + top), bilinear, border clamped.
    """
    mask = torch.zeros(geometry.height, geometry.width, dtype=torch.bool)
    rows, columns = inside(box, geometry.height, geometry.width)
    v, u = (torch.arange(cut.start, cut.stop) + 0.5 for cut in (rows, columns))
    if len(v) and len(u):
        # grid_sample counts from -1 to 1 over the input
        y = (v * geometry.rows / geometry.height + geometry.top) / geometry.input_height * 2 - 1
        x = (u * geometry.columns / geometry.width + geometry.left) / geometry.input_width * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        mask[rows, columns] = F.grid_sample(logits[None, None], grid[None], padding_mode="border", align_corners=False)[0, 0] > 0
    return mask


def reference_mask(logits: torch.Tensor, box: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """As `image_mask`, but resizing a window of whole prototype cells, as the published code does: shifted by up to one cell."""
    height, width = logits.shape
    gain = min(height / geometry.height, width / geometry.width)
    y, x = (height - geometry.height * gain) / 2, (width - geometry.width * gain) / 2
    window = logits[int(y):int(height - y), int(x):int(width - x)]
    resized = F.interpolate(window[None, None], (geometry.height, geometry.width), mode="bilinear")[0, 0] > 0
    mask = torch.zeros_like(resized)
    cut = inside(box, *mask.shape)
    mask[cut] = resized[cut]
    return mask


def prototype_mask(logits: torch.Tensor, box: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Logits within a box in input pixels, tested on the prototype grid; resized to the input, > 0, cut, nearest pixels: bool [h, w]."""
    boxed = torch.zeros_like(logits)
    cut = inside(box / CELL, *logits.shape)
    boxed[cut] = logits[cut]
    mask = F.interpolate(boxed[None, None], (geometry.input_height, geometry.input_width), mode="bilinear") > 0
    x1, y1, x2, y2 = geometry.content
    return F.interpolate(mask[..., y1:y2, x1:x2].float(), (geometry.height, geometry.width), mode="nearest-exact")[0, 0] > 0


def bounds(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """The smallest box around a mask [h, w] that is not empty: x1, y1, x2, y2, whole pixels."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def checked(mask: torch.Tensor, size: tuple[int, int] | None, where: str) -> torch.Tensor:
    """A MASK from any node as [masks, height, width] in [0, 1]: what every MASK socket of ours takes, and what it refuses.

    size: (height, width) of the latent that it will lie on, None where only sampling knows it (then `check_aspect` follows).
    Raises ValueError that begins with `where` for no mask at all, other dimensions, another shape, NaN and infinity.
    """
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]  # one channel, as some nodes give it
    if mask.ndim not in (2, 3):
        raise ValueError(f"{where} has dimensions {list(mask.shape)}, but a mask is [masks, height, width]. Connect a MASK; of a picture, take "
                         "Convert Image to Mask.")
    mask = (mask[None] if mask.ndim == 2 else mask).float().cpu()
    if mask.numel() == 0:
        raise ValueError(f"{where} holds no mask: nothing was found. Choose another prompt, or connect another mask.")
    if not torch.isfinite(mask).all():
        raise ValueError(f"{where} holds NaN or infinite values. Check the node it comes from.")
    if size is not None:
        check_aspect(mask.shape[-2:], size, where)
    return mask.clamp(0, 1)


def check_aspect(mask: Sequence[int], size: Sequence[int], where: str) -> None:
    """Raises ValueError unless a mask's (height, width) has the shape of a picture whose latent has `size` cells, within 1 %.

    Encoding cuts a picture to whole cells, so it may have had up to one cell more a side than its latent shows.
    """
    (height, width), (rows, columns) = mask, size
    aspect = width / height
    if not min(0.99 * columns / rows, columns / (rows + 1)) <= aspect <= max(1.01 * columns / rows, (columns + 1) / rows):
        raise ValueError(f"{where} is {width} x {height}, another shape than the latent's {columns} x {rows}. Make it from the picture that "
                         "was encoded.")


def grow(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Masks [n, h, w] wider by some pixels on every side, narrower for a negative number; the picture's border adds nothing."""
    reach, sign = abs(pixels), 1 if pixels > 0 else -1
    window = 2 * reach + 1
    if not reach:
        return mask
    mask = F.max_pool2d(sign * mask[:, None], (window, 1), 1, (reach, 0))     # max_pool2d pads with -infinity
    return sign * F.max_pool2d(mask, (1, window), 1, (0, reach))[:, 0]


def feather(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Masks [n, h, w] whose edges ramp from `pixels` outside to `pixels` inside: the mean of a square, edges of the picture repeated."""
    if not pixels:
        return mask
    for axis in (1, 2):
        ends = (0, 0, pixels, pixels) if axis == 1 else (pixels, pixels, 0, 0)
        total = F.pad(mask[:, None].double(), ends, mode="replicate")[:, 0].cumsum(axis)
        total = F.pad(total, (0, 0, 1, 0) if axis == 1 else (1, 0))
        length, window = mask.shape[axis], 2 * pixels + 1
        mask = (total.narrow(axis, window, length) - total.narrow(axis, 0, length)) / window
    return mask.float().clamp(0, 1)
