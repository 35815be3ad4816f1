"""What CLIP is shown of a mask."""

import torch

from .masks import bounds

MODES = ["cutout", "reference"]
LEAST = 100           # masks of at most so many pixels have nothing to show


def cutout(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The masked pixels of a picture [h, w, RGB] in the middle of a white square, 10 % larger than their bounding box."""
    x1, y1, x2, y2 = bounds(mask)
    height, width = y2 - y1, x2 - x1
    side = round(1.1 * max(height, width))
    top, left = (side - height) // 2, (side - width) // 2
    square = image.new_ones(side, side, 3)
    square[top:top + height, left:left + width][mask[y1:y2, x1:x2]] = image[y1:y2, x1:x2][mask[y1:y2, x1:x2]]
    return square


def in_place(image: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """A box [4] of a picture at its place on a white canvas of the picture's size, as in the published code."""
    x1, y1, x2, y2 = (int(side) for side in box.tolist())
    canvas = torch.ones_like(image)
    canvas[y1:y2, x1:x2] = image[y1:y2, x1:x2]
    return canvas
