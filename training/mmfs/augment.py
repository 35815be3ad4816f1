"""What keeps a discriminator from learning few pictures by heart: real and fake ones are shaken alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F

SHIFT, BRIGHTNESS, CONTRAST = 1 / 8, 0.25, 0.25  # of the side; most change


def augment(pictures: torch.Tensor, probability: float) -> torch.Tensor:
    """[B, 3, S, S]: each picture is mirrored, shifted, changed in brightness and contrast, each with this probability.

    Differentiable. Probability 0 leaves the pictures as they are.
    """
    if probability == 0:
        return pictures
    count, device = len(pictures), pictures.device

    def chosen(values: torch.Tensor, still: float) -> torch.Tensor:
        happens = torch.rand(count, *[1] * (values.ndim - 1)) < probability
        return torch.where(happens, values, torch.full_like(values, still)).to(device)

    def spread(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape) * 2 - 1

    mirrored = chosen(-torch.ones(count), 1.0)
    move = chosen(spread(2) * 2 * SHIFT, 0.0)  # of a side that is 2 long
    grid = torch.zeros(count, 2, 3, dtype=torch.promote_types(pictures.dtype, torch.float32), device=device)
    grid[:, 0, 0], grid[:, 1, 1], grid[:, :, 2] = mirrored, 1.0, move
    where = F.affine_grid(grid, list(pictures.shape), align_corners=False).to(pictures.dtype)
    x = F.grid_sample(pictures, where, padding_mode="reflection", align_corners=False)
    x = x + chosen(spread(1, 1, 1) * BRIGHTNESS, 0.0)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (1 + chosen(spread(1, 1, 1) * CONTRAST, 0.0))
