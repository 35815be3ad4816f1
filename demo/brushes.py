"""What every style paints with: palettes, light, noise, contours."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .portraits import Layers


def palette(colors, variant):
    """[n, k, 3] table of colours -> k tensors [n, 3, 1, 1] for the chosen variants."""
    table = torch.tensor(colors, device=variant.device)[variant]
    return [table[:, k, :, None, None] for k in range(table.shape[1])]


def luma(image):
    return (image * torch.tensor([.3, .59, .11], device=image.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def saturate(image, amount):
    gray = luma(image)
    return (gray + (image - gray) * amount).clamp(0, 1)


def blur(image, radius):
    return F.avg_pool2d(F.pad(image, (radius,) * 4, mode="replicate"), 2 * radius + 1, 1)


def noise(layers, cells, generator):
    """Smooth noise [B, 1, S, S] of unit spread, ``cells`` bumps across."""
    count, _, size, _ = layers.shade.shape
    grid = torch.randn(count, 1, cells, cells, generator=generator).to(layers.shade.device)
    return F.interpolate(grid, (size, size), mode="bicubic", align_corners=False)


def warp(layers, amount, generator):
    """Shake the layers by smooth noise, ``amount`` in half picture widths."""
    count, _, size, _ = layers.shade.shape
    axis = (torch.arange(size, device=layers.shade.device) + .5) / size * 2 - 1
    Y, X = torch.meshgrid(axis, axis, indexing="ij")
    where = torch.stack([X + amount * noise(layers, 9, generator)[:, 0], Y + amount * noise(layers, 9, generator)[:, 0]], -1)
    stack = torch.cat([layers.color, layers.shade, layers.line.clamp(max=30), layers.figure], 1)
    color, shade, line, figure = F.grid_sample(stack, where, padding_mode="border", align_corners=False).split((3, 1, 1, 1), 1)
    return Layers(color, shade, line, figure, layers.light, layers.relief, layers.hair, layers.zoom)


def stroke(layers, width):
    """Contours as a mask of lines ``width`` pixels wide, in pixels of a 256-pixel picture."""
    return (width / 2 + .5 - layers.line).clamp(0, 1)


def lit(layers, amount=.5):
    return (layers.color * (1 + amount * layers.shade)).clamp(0, 1)


def pixels(layers):
    size = layers.shade.shape[-1]
    axis = (torch.arange(size, device=layers.shade.device) * (256 // size if size < 256 else 1)).float()
    return axis.view(1, 1, 1, -1), axis.view(1, 1, -1, 1)
