"""Pictures from files."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torchvision.transforms.functional import to_tensor

from .errors import EvaluationError

SMALLEST = 64  # pixels: the deepest layers of the networks have nothing left to see below


@lru_cache(maxsize=8)
def load(path: Path) -> Image.Image:
    """RGB as a viewer shows it (turned by its EXIF tag, transparency dropped). Raises EvaluationError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise EvaluationError(f"{path} does not exist") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise EvaluationError(f"{path} cannot be read as a picture: {first_line(error)}") from None
    if min(picture.size) < SMALLEST:
        raise EvaluationError(f"{path} has {picture.width} x {picture.height} pixels: the metrics need {SMALLEST} on each side")
    return picture


def as_batch(picture: Image.Image, device) -> torch.Tensor:
    """[1, 3, H, W] from 0 to 1."""
    return to_tensor(picture)[None].to(device)


def like(picture: Image.Image, other: Image.Image) -> Image.Image:
    """`picture` scaled to the size of `other`: two pictures are compared pixel by pixel or at one scale."""
    return picture if picture.size == other.size else picture.resize(other.size, Image.Resampling.BICUBIC)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
