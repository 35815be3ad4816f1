"""A picture into the network's padded input, and the numbers that lead back."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .contract import STRIDE

GREY = 114 / 255      # the padding FastSAM was trained with


@dataclass(frozen=True)
class Geometry:
    """Where a picture of height x width lies in an input of input_height x input_width: rows x columns pixels from (top, left)."""

    height: int
    width: int
    input_height: int
    input_width: int
    rows: int
    columns: int
    top: int
    left: int
    scale: float

    @property
    def content(self) -> tuple[int, int, int, int]:
        """The picture's rectangle in the input: x1, y1, x2, y2."""
        return self.left, self.top, self.left + self.columns, self.top + self.rows


def plan(height: int, width: int, size: int, fixed: tuple[int, int] | None = None) -> Geometry:
    """How to fit a picture into an input whose longer side is `size`, or into a fixed input (height, width).

    The scale is the same on both axes and may enlarge; sides are rounded, at least 1 pixel. What is missing to a multiple of 32
    (or to the fixed input) is padding: half before, rounded down, the rest after.
    """
    box = fixed or (size, size)
    scale = min(box[0] / height, box[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    inner = fixed or (-(-rows // STRIDE) * STRIDE, -(-columns // STRIDE) * STRIDE)
    return Geometry(height, width, *inner, rows, columns, (inner[0] - rows) // 2, (inner[1] - columns) // 2, scale)


def fit(image: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """A picture [height, width, RGB] in [0, 1] -> the input [1, 3, input_height, input_width]: bilinear, 8-bit levels, grey padding."""
    small = F.interpolate(image.float().clamp(0, 1).movedim(-1, 0)[None], (geometry.rows, geometry.columns), mode="bilinear")
    out = torch.full((1, 3, geometry.input_height, geometry.input_width), GREY)
    x1, y1, x2, y2 = geometry.content
    out[..., y1:y2, x1:x2] = (small * 255).round() / 255
    return out
