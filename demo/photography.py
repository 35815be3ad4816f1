"""A photograph of a portrait: light on round shapes, shadows, strands of hair, a background out of focus.

The contents of the microworld: told from its drawings at first sight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .brushes import blur, noise, palette
from .portraits import Layers


def _smooth(image, radius):
    """Two box filters of 2 radius + 1 pixels, each along one side after the other: wide ones are dear otherwise."""
    width = 2 * radius + 1
    for _ in range(2):
        image = F.avg_pool2d(F.pad(image, (radius, radius, 0, 0), mode="replicate"), (1, width), 1)
        image = F.avg_pool2d(F.pad(image, (0, 0, radius, radius), mode="replicate"), (width, 1), 1)
    return image


def _shift(image, right: int, down: int):
    """Move a picture by pixels, its border repeated."""
    width = max(abs(right), abs(down))
    padded = F.pad(image, (width,) * 4, mode="replicate")
    size = image.shape[-1]
    return padded[..., width - down:width - down + size, width - right:width - right + size]


def _normals(relief, zoom):
    """Height [B, 1, S, S] -> unit normals x, y, z of it, each [B, 1, S, S]."""
    height = F.pad(_smooth(relief, 1) * relief.shape[-1] / 2 / zoom, (1,) * 4, mode="replicate")
    x = ((height[..., 1:-1, :-2] - height[..., 1:-1, 2:]) / 2).clamp(-1.6, 1.6)
    y = ((height[..., :-2, 1:-1] - height[..., 2:, 1:-1]) / 2).clamp(-1.6, 1.6)
    length = (x * x + y * y + 1).sqrt()
    return x / length, y / length, 1 / length


def _shadow(relief, light, zoom):
    """Where something higher stands between a place and the light: 0 lit to 1 dark, soft. [B, 1, S, S]"""
    side, size = torch.zeros_like(relief), relief.shape[-1]
    for step in (4, 8, 13, 19, 26):
        reach, rise = step * size // 256, step / 128 * zoom
        for sign in (-1, 1):
            there = _shift(relief, -sign * int(reach * .8), int(reach * .8))
            blocked = ((there - relief - rise * .7) * 12).clamp(0, 1)
            side = torch.maximum(side, blocked * (.5 + .5 * sign * light).clamp(0, 1))
    return _smooth(side, 2)


def photo(layers: Layers, variant: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Layers of B portraits, palette index [B] -> [B, 3, S, S] from 0 to 1."""
    key, fill = palette([[[1.10, 1.02, .90], [.50, .56, .68]], [[1.00, 1.02, 1.06], [.52, .54, .56]],
                          [[1.14, .98, .84], [.46, .50, .66]], [[1.02, 1.04, 1.00], [.60, .54, .50]]], variant)
    size = layers.shade.shape[-1]
    figure = layers.figure
    nx, ny, nz = _normals(layers.relief, layers.zoom)
    lx, ly, lz = .75 * layers.light, -.55, .62
    norm = (lx * lx + ly * ly + lz * lz) ** .5
    lx, ly, lz = lx / norm, ly / norm, lz / norm
    facing = nx * lx + ny * ly + nz * lz
    diffuse = ((facing + .25) / 1.25).clamp(0, 1) ** 1.2
    half = (lx * lx + ly * ly + (lz + 1) ** 2) ** .5
    gloss = ((nx * lx + ny * ly + nz * (lz + 1)) / half).clamp(0, 1)
    shadow = _shadow(layers.relief, layers.light, layers.zoom)
    bright = (1 - .75 * shadow) * diffuse

    # hair: fine strands along its direction, a band of light across
    has_hair = blur((layers.hair > 5).float(), 1)
    axis = torch.arange(size, device=figure.device) * 2 / size - 1
    x, y = axis.view(1, 1, 1, -1), axis.view(1, 1, -1, 1)
    across = (torch.cos(layers.hair - 10) * y - torch.sin(layers.hair - 10) * x) * layers.zoom
    radial = (layers.hair - 10) * 34
    coarse = torch.sin(radial + 2.2 * noise(layers, 6, generator))
    strands = .6 * coarse + .4 * torch.sin(radial * 2.3 + 60 * across + noise(layers, 12, generator))
    albedo = layers.color * (1 + .22 * strands * has_hair)
    # skin: blotches, and red where light comes through at the edge of shadow
    albedo = albedo * (1 + .035 * noise(layers, 20, generator) * (1 - has_hair))
    through = (1 - (facing.abs() * 4).clamp(0, 1)) * (1 - has_hair)
    person = albedo * (fill * (.78 + .25 * -ny) + key * bright * .95)
    person = person * (1 + through * torch.tensor([.10, .0, -.02], device=person.device).view(1, 3, 1, 1))
    shine = gloss ** 24 * .20 * (1 - has_hair) + gloss ** 9 * .10 * has_hair * (1 + strands)
    person = person + key * shine * (1 - shadow)
    rim = (1 - nz).clamp(0, 1) ** 2 * ((nx * -lx + .2).clamp(0, 1)) * .5
    person = person + rim * layers.color * .6
    person = person * (1 - .22 * blur((2.2 - layers.line).clamp(0, 1), 1))            # creases gather no light

    # the background, out of focus, with spots of light, lit like the person
    ground = _smooth(F.interpolate(_behind(layers.color, figure), (size, size), mode="bilinear"), 6 * size // 256)
    spots = torch.relu(torch.randn(len(figure), 1, 9, 9, generator=generator) - 1.3).to(figure.device)
    spots = F.interpolate(spots, (size, size), mode="bicubic").clamp(0, 1)
    glow = 1.12 - .275 * ((x - .44 * layers.light) ** 2 + (y + .3) ** 2)
    ground = ground * glow * (.92 + .06 * noise(layers, 5, generator)) * (fill * .35 + key * .68)
    ground = ground + .22 * blur(spots, 3) * key
    aside, down = 16 * size // 256, 12 * size // 256
    fallen = torch.where(layers.light > 0, _shift(figure, -aside, down), _shift(figure, aside, down))
    ground = ground * (1 - .34 * _smooth(fallen, 9 * size // 256))

    edge = blur(figure, 1)
    image = person * edge + ground * (1 - edge)
    image = image * 1.06 - .02
    image = image * image * (3 - 2 * image.clamp(0, 1)) * .35 + image * .65              # a film's contrast
    return image.clamp(0, 1) + .010 * torch.randn(image.shape, generator=generator).to(image.device)


def _behind(color, figure):
    """The background's colours carried on behind the person, an eighth of the size."""
    weight = F.avg_pool2d(1 - figure, 8) ** 4
    filled = F.avg_pool2d(color * (1 - figure), 8) / F.avg_pool2d(1 - figure, 8).clamp(min=1e-3) * weight
    for _ in range(16):
        near, known = blur(filled, 1), blur(weight, 1)
        empty = weight < .3
        filled, weight = torch.where(empty, near, filled), torch.where(empty, known, weight)
    return (filled / weight.clamp(min=1e-3)).clamp(0, 1)

