"""Masks of pictures on the token grids of attention layers."""

import torch
import torch.nn.functional as F


def mask_on_grid(mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """A picture mask [images, height, width] averaged over the cells of a token grid: [images, grid tokens] in [0, 1]."""
    return F.adaptive_avg_pool2d(mask.float().clamp(0, 1)[:, None], grid).flatten(1)
