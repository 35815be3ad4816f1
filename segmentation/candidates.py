"""From the network's table to boxes: threshold, suppression of duplicates, and boxes that nearly touch the border."""

from dataclasses import dataclass

import torch
from torchvision.ops import nms

from .preprocess import Geometry

MOST = 30_000         # candidates that suppression looks at
NEAR = 20             # input pixels from the border within which a side snaps to it
WHOLE = 0.9           # IoU with the frame above which a box becomes the frame


@dataclass(frozen=True)
class Candidates:
    """boxes [n, 4] in input pixels, scores [n] falling, coefficients [n, P]; best: the highest score of all, kept or not."""

    boxes: torch.Tensor
    scores: torch.Tensor
    coefficients: torch.Tensor
    best: float


def candidates(table: torch.Tensor, prototypes: int, conf: float, iou: float, max_det: int) -> Candidates:
    """Rows of A [4 + C + P, N] whose score, the maximum over classes, exceeds `conf`, without those that overlap a better one.

    conf, iou in [0, 1]. Equal scores keep their order. At most `max_det` remain.
    """
    scores = table[4:len(table) - prototypes].amax(0)
    best = float(scores.max()) if len(scores) else 0.0
    chosen = torch.nonzero(scores > conf)[:, 0]
    chosen = chosen[scores[chosen].sort(descending=True, stable=True).indices[:MOST]]
    centre, half = table[:2, chosen].T, table[2:4, chosen].T / 2
    boxes = torch.cat([centre - half, centre + half], 1)
    kept = nms(boxes, scores[chosen], iou)[:max_det]
    return Candidates(boxes[kept], scores[chosen][kept], table[len(table) - prototypes:, chosen[kept]].T, best)


def frame(geometry: Geometry, reference: bool) -> torch.Tensor:
    """The border that boxes snap to, [4] in input pixels: the picture's, or with `reference` that of the padded input."""
    return torch.tensor((0, 0, geometry.input_width, geometry.input_height) if reference else geometry.content, dtype=torch.float32)


def snap(boxes: torch.Tensor, border: torch.Tensor) -> torch.Tensor:
    """Sides of boxes [n, 4] nearer than 20 pixels to the border [4] move onto it; boxes that then nearly fill it become it.

    Each box for itself: neither count nor order change.
    """
    low, high = border[:2], border[2:]
    boxes = torch.cat([torch.where(boxes[:, :2] < low + NEAR, low, boxes[:, :2]),
                       torch.where(boxes[:, 2:] > high - NEAR, high, boxes[:, 2:])], 1)
    overlap = (torch.minimum(boxes[:, 2:], high) - torch.maximum(boxes[:, :2], low)).clamp(min=0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    whole = overlap / (area + (high - low).prod() - overlap) > WHOLE
    return torch.where(whole[:, None], border, boxes)


def to_image(boxes: torch.Tensor, geometry: Geometry, reference: bool) -> torch.Tensor:
    """Boxes [n, 4] of input pixels in pixels of the picture, clamped to it. `reference` divides by the scale before rounding."""
    scale = (geometry.scale,) * 2 if reference else (geometry.columns / geometry.width, geometry.rows / geometry.height)
    shift = torch.tensor((geometry.left, geometry.top) * 2, dtype=torch.float32)
    boxes = (boxes - shift) / torch.tensor(scale * 2, dtype=torch.float32)
    return torch.minimum(boxes.clamp(min=0), torch.tensor((geometry.width, geometry.height) * 2, dtype=torch.float32))
