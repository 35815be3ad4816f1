"""Align Face and Paste Face: landmarks from three sources, photos in batches, progress, warnings."""

from __future__ import annotations

import comfy.utils
import torch

from ..identity import alignment, analysis as maths
from ..identity.alignment import FaceTransform, FaceTransforms
from ..segmentation.masks import checked
from .faces import missing_insightface
from .log import log

ALIGN, PASTE = "Align Face", "Paste Face"
ALL = -1
LARGEST = 8  # times a photo's long side: no face's square is as large


def align(
    images: torch.Tensor, faces, size: int = 512, face: int = 0, smoothing: float = 0.0
) -> tuple[torch.Tensor, FaceTransforms, torch.Tensor]:
    """The faces in a batch of photos [photos, height, width, channels], upright: crops [faces, size, size, 3], where
    they come from, and [faces, size, size], 1 where a crop lies inside its photo.

    ``faces``: FACE_LANDMARKS of ComfyUI's MediaPipe nodes, or an analysis with ``.get(bgr)``, which looks for them.
    ``face``: which, the largest 0, or ``ALL``. Raises ValueError when none of the photos has that face.
    """
    images, height, width = colours(images, ALIGN), *images.shape[1:3]
    progress = comfy.utils.ProgressBar(2 * len(images))
    points = told(faces, images, progress) if isinstance(faces, dict) else found(faces, images, progress)
    frames = [usable(frame, number, max(height, width)) for number, frame in enumerate(points)]
    film = alignment.numbered(frames, smoothing)
    transforms, crops, masks = [], [], []
    for frame, (image, there) in enumerate(zip(images, film)):
        for number in sorted(there) if face == ALL else [face] if face in there else []:
            matrix = alignment.crop_matrix(there[number], size)
            crop, inside = alignment.cut(image, matrix, size)
            crops.append(crop)
            masks.append(inside)
            transforms.append(FaceTransform(frame, number, matrix, size))
        progress.update(1)  # also where Cancel is noticed
    missing = sorted(set(range(len(images))) - {transform.frame for transform in transforms})
    which = "face" if face == ALL else f"face {face}"
    if not crops:
        most = max(map(len, film))
        raise ValueError(
            f"{ALIGN}: no {which} in {'the photo' if len(images) == 1 else f'any of the {len(images)} photos'} (at most"
            f" {most} found). "
            + (
                "Choose a smaller 'face'; 0 is the largest."
                if most
                else "Use a photo that shows the whole face, upright or nearly so."
            )
        )
    if missing:
        log.warning(
            "%s: no %s in photo %s of %d; Paste Face leaves them as they are.",
            ALIGN,
            which,
            ", ".join(str(at + 1) for at in missing),
            len(images),
        )
    return torch.stack(crops), FaceTransforms(len(images), height, width, tuple(transforms)), torch.stack(masks)


def colours(images: torch.Tensor, node: str) -> torch.Tensor:
    """Pictures [n, height, width, 3]: alpha dropped, grey repeated. Raises ValueError for an empty batch, NaN and
    infinite values.
    """
    if not images.numel():
        raise ValueError(f"{node}: the batch of pictures is empty. Check the node it comes from.")
    for number, image in enumerate(images):
        if not torch.isfinite(image).all():
            raise ValueError(
                f"{node}: picture {number + 1} of the batch holds NaN or infinite values. Check the node it comes from."
            )
    return images[..., :3] if images.shape[-1] > 2 else images[..., :1].expand(*images.shape[:3], 3)


def told(landmarks: dict, images: torch.Tensor, progress) -> list[list[torch.Tensor]]:
    """The points of every face of every photo, from FACE_LANDMARKS. Raises ValueError when they are of other photos."""
    try:
        frames, size, connections = landmarks["frames"], tuple(landmarks["image_size"]), landmarks["connection_sets"]
        points = [[alignment.points_of_mesh(face["landmarks_xy"], connections) for face in frame] for frame in frames]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{ALIGN}: 'faces' is no FACE_LANDMARKS of Detect Face Landmarks (MediaPipe) ({type(error).__name__}:"
            f" {error}). Connect that node, Face Analysis Loader or Demo Face Loader."
        ) from error
    except ValueError as error:
        raise ValueError(f"{ALIGN}: {error}. Connect Detect Face Landmarks (MediaPipe) of ComfyUI.") from error
    if size != tuple(images.shape[1:3]) or len(frames) != len(images):
        raise ValueError(
            f"{ALIGN}: the landmarks are of {len(frames)} photos of {size[1]} x {size[0]}, but 'image' holds"
            f" {len(images)} of {images.shape[2]} x {images.shape[1]}. Connect the same pictures to both nodes."
        )
    progress.update(len(images))
    return points


def found(analysis, images: torch.Tensor, progress) -> list[list[torch.Tensor]]:
    """The points of every face of every photo that an analysis finds. Raises ValueError when it gives no points."""
    if not hasattr(analysis, "get"):
        raise ValueError(
            f"{ALIGN}: 'faces' is a {type(analysis).__name__}, which finds no faces. Connect Detect Face Landmarks"
            " (MediaPipe), Face Analysis Loader or Demo Face Loader."
        )
    frames = []
    for image in images:
        try:
            faces = maths.find_faces(analysis, maths.to_bgr(image))
        except ImportError as error:
            raise missing_insightface(ALIGN, error) from error
        if any(face.kps is None for face in faces):
            raise ValueError(
                f"{ALIGN}: the face analysis gives no points of the face, which aligning needs. Use an insightface pack"
                " such as buffalo_l."
            )
        frames.append([alignment.points_of_five(face.kps) for face in faces])
        progress.update(1)
    return frames


def usable(faces: list[torch.Tensor], frame: int, longest: int) -> list[torch.Tensor]:
    """The faces that can be aligned in a photo with this long side; the others are told of."""
    good = [points for points in faces if alignment.usable(points) and alignment.side(points) < LARGEST * longest]
    if len(good) < len(faces):
        log.warning(
            "%s: skipped %d of %d faces in photo %d: less than %d pixels between the eyes, or no face's landmarks.",
            ALIGN,
            len(faces) - len(good),
            len(faces),
            frame + 1,
            alignment.SMALLEST,
        )
    return good


def paste(
    images: torch.Tensor,
    crops: torch.Tensor,
    transforms: FaceTransforms,
    masks: torch.Tensor | None = None,
    feather: float = 0.08,
    opacity: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The crops [faces, side, side, channels] back in their photos: the photos, and [photos, height, width], the share
    that was replaced.

    The photos keep their channels, or get three. ``masks`` [faces or 1, h, w] say where a crop counts. Raises
    ValueError when things do not belong together.
    """
    if masks is not None:
        masks = checked(masks, None, f"{PASTE}: 'mask'")
    check(images, crops, transforms, masks)
    crops = colours(crops, PASTE).to(images.device)
    pasted = images.clone() if images.shape[-1] > 2 else images[..., :1].repeat(1, 1, 1, 3)
    share = torch.zeros(images.shape[:3], device=images.device)
    progress = comfy.utils.ProgressBar(len(images))
    for frame in range(len(images)):
        rows = [row for row, transform in enumerate(transforms.faces) if transform.frame == frame]
        if rows:
            chosen = None if masks is None else [masks[row if len(masks) > 1 else 0].to(images.device) for row in rows]
            matrices = [transforms.faces[row].for_size(crops.shape[1]) for row in rows]
            pasted[frame, ..., :3], share[frame] = alignment.paste(
                pasted[frame, ..., :3], crops[rows], matrices, feather, chosen, opacity
            )
        progress.update(1)
    return pasted, share


def check(images, crops, transforms, masks) -> None:
    """Raises ValueError unless the crops are square, as many as the transform has, and the photos those they were cut
    from.
    """
    count, (height, width) = len(transforms.faces), crops.shape[1:3]
    if len(crops) != count:
        raise ValueError(
            f"{PASTE}: {len(crops)} crops, but the transform of Align Face has {count}. Give back every crop, in their"
            " order."
        )
    if height != width:
        raise ValueError(
            f"{PASTE}: the crops are {width} x {height} pixels. They may be larger or smaller than Align Face gave"
            " them, but must be square."
        )
    if (transforms.frames, transforms.height, transforms.width) != tuple(images.shape[:3]):
        raise ValueError(
            f"{PASTE}: the faces were cut from {transforms.frames} photos of {transforms.width} x {transforms.height},"
            f" but 'image' holds {len(images)} of {images.shape[2]} x {images.shape[1]}. Connect the pictures that"
            " Align Face got."
        )
    if masks is not None and len(masks) not in (1, count):
        raise ValueError(
            f"{PASTE}: {len(masks)} masks for {count} crops. Give one mask for all crops, or one for each."
        )
    if masks is not None and masks.shape[1] != masks.shape[2]:
        raise ValueError(
            f"{PASTE}: the mask is {masks.shape[2]} x {masks.shape[1]} pixels. It is laid over the crops, so it must be"
            " square."
        )
