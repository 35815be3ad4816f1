"""How a portrait is painted: one function per style, from the Layers of ``portraits.py`` to a picture.

Textures repeat every 4, 8 or 16 pixels of a 256-pixel picture, so that a codec that downsamples by 16 can place them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .brushes import blur, lit, luma, noise, palette, pixels, saturate, stroke, warp
from .photography import photo
from .portraits import ZOOM, Layers, draw

VARIANTS = 4   # palettes of each style


def cartoon(layers, variant, generator):
    ink, = palette([[[.05, .04, .08]], [[.16, .06, .05]], [[.04, .08, .22]], [[.05, .04, .08]]], variant)
    tone = torch.where(layers.shade < -.12, .80, 1.)
    image = saturate(layers.color, 1.4) * (tone * layers.figure + 1 - layers.figure)
    line = stroke(layers, 6)
    return image * (1 - line) + ink * line


def pixel(layers, variant, generator):
    tone = torch.where(layers.shade < -.12, .72, 1.)
    image = saturate(layers.color, 1.25) * (tone * layers.figure + 1 - layers.figure) * (1 - .8 * stroke(layers, 5))
    cell = image.shape[-1] // 32
    image = (F.avg_pool2d(image, cell) * 5).round() / 5
    return F.interpolate(image, scale_factor=cell, mode="nearest")


def ink(layers, variant, generator):
    pen, paper = palette([[[.06, .05, .07], [.97, .96, .92]], [[.28, .14, .06], [.98, .94, .85]],
                           [[.06, .12, .40], [.95, .96, .97]], [[.35, .05, .08], [.98, .95, .92]]], variant)
    x, y = pixels(layers)
    tone = torch.where(layers.figure > .5, luma(lit(layers, .6)), .6 + .4 * luma(layers.color))
    rising, falling = ((x + y) % 8 < 3).float(), ((x - y) % 8 < 3).float()
    dark = (tone < .48) * rising
    dark = torch.maximum(dark, (tone < .26) * falling)
    dark = torch.maximum(torch.maximum(dark, (tone < .13).float()), stroke(layers, 3.5))
    return paper * (1 - dark) + pen * dark


def watercolor(layers, variant, generator):
    paper, = palette([[[.98, .97, .95]], [[.97, .95, .90]], [[.95, .97, .98]], [[.99, .96, .96]]], variant)
    layers = warp(layers, .022, generator)
    wash = blur(blur(saturate(lit(layers, .35), 1.1), 4), 3)
    image = (wash * .72 + .26) * (1 + .10 * noise(layers, 7, generator) + .05 * noise(layers, 28, generator))
    image = image - .20 * blur(stroke(layers, 5), 2)
    x, y = pixels(layers)
    size = x.max() + 1
    edge = (((x / size - .5).abs() * 2) ** 4 + ((y / size - .5).abs() * 2) ** 4)
    inside = ((1.02 - edge) * 3 + .5 * noise(layers, 10, generator)).clamp(0, 1)
    return image * inside + paper * (1 - inside)


def popart(layers, variant, generator):
    tones = torch.tensor([[[.14, .03, .30], [.95, .12, .52], [.99, .78, .12], [.99, .97, .82]],
                          [[.03, .12, .34], [.06, .58, .78], [.99, .47, .37], [1., .94, .76]],
                          [[.28, .02, .10], [.92, .22, .12], [.22, .80, .74], [.95, 1., .90]],
                          [[.06, .18, .08], [.16, .62, .28], [.99, .86, .08], [1., .95, .70]]], device=variant.device)[variant]
    tone = luma(lit(layers, .5))
    level = (tone > .27).long() + (tone > .47).long() + (tone > .70).long()
    count, _, size, _ = level.shape
    image = torch.gather(tones.transpose(1, 2), 2, level.view(count, 1, -1).expand(-1, 3, -1)).view(count, 3, size, size)
    x, y = pixels(layers)
    dots = (((x % 16) - 7.5) ** 2 + ((y % 16) - 7.5) ** 2 < 20).float()
    ground = tones[:, 2, :, None, None] * (1 - dots) + tones[:, 1, :, None, None] * dots
    line = stroke(layers, 6)
    return (image * layers.figure + ground * (1 - layers.figure)) * (1 - line) + .03 * line


def neon(layers, variant, generator):
    glow, night = palette([[[.15, .95, 1.], [.03, .02, .10]], [[1., .20, .80], [.05, .01, .08]],
                            [[.40, 1., .35], [.01, .05, .04]], [[1., .62, .15], [.07, .02, .04]]], variant)
    hue = layers.color / (layers.color.amax(1, keepdim=True) + .05)
    hue = .35 * hue * hue + .65 * glow
    halo = torch.exp(-layers.line / 7)
    return night + layers.color * .12 * layers.figure + hue * (stroke(layers, 4) * .75 + halo * .55)


def chalk(layers, variant, generator):
    board, = palette([[[.13, .22, .18]], [[.16, .17, .19]], [[.15, .15, .28]], [[.25, .15, .14]]], variant)
    layers = warp(layers, .006, generator)
    x, y = pixels(layers)
    grain = .62 + .38 * torch.sin((x + 2 * y) * math.pi / 4) * torch.sin((2 * x - y) * math.pi / 4)
    pastel = saturate(layers.color, .8) * .6 + .38
    fill = ((.34 + .25 * layers.shade) * layers.figure + .05).clamp(0, .75) * grain
    line = stroke(layers, 5) * .95
    image = board * (1 - fill) + pastel * fill
    return image * (1 - line) + (pastel * .4 + .58) * line


def sepia(layers, variant, generator):
    low, high = palette([[[.14, .08, .04], [.96, .87, .70]], [[.12, .10, .09], [.92, .90, .85]],
                          [[.06, .10, .13], [.86, .93, .92]], [[.18, .06, .06], [.98, .86, .76]]], variant)
    x, y = pixels(layers)
    size = x.max() + 1
    vignette = 1 - .75 * (((x / size - .5) ** 2 + (y / size - .5) ** 2) * 2).clamp(0, 1)
    tone = (luma(blur(lit(layers, .6), 2)) * vignette * (1 - .25 * blur(stroke(layers, 3), 2))).clamp(0, 1)
    return low + (high - low) * tone


def poster(layers, variant, generator):
    first, second, paper = palette([[[.95, .36, .30], [.10, .42, .45], [.98, .95, .88]], [[.98, .70, .15], [.30, .22, .55], [.97, .96, .93]],
                                     [[.30, .72, .55], [.55, .12, .35], [.98, .96, .90]], [[.25, .55, .90], [.85, .20, .25], [.97, .97, .92]]], variant)
    tone = luma(lit(layers, .6))
    light_ink = ((.78 - tone) * 8).clamp(0, 1)
    x, y = pixels(layers)
    stripes = ((x + y) % 16 < 8).float()
    dark_ink = torch.maximum(((.36 - tone) * 8).clamp(0, 1), ((.5 - tone) * 8).clamp(0, 1) * stripes)
    shifted = torch.roll(dark_ink, (2, 2), (2, 3))
    image = paper * (1 - light_ink) + first * light_ink
    return image * (1 - shifted) + second * shifted


def blueprint(layers, variant, generator):
    ground, = palette([[[.08, .22, .52]], [[.06, .30, .45]], [[.12, .14, .40]], [[.05, .26, .60]]], variant)
    x, y = pixels(layers)
    grid = ((x % 16 < 1) | (y % 16 < 1)).float() * .18
    image = ground * (1 + .25 * layers.shade * layers.figure) + grid
    line = stroke(layers, 3)
    return image * (1 - line) + .93 * line


def glass(layers, variant, generator):
    lead, = palette([[[.06, .06, .07]], [[.10, .08, .05]], [[.05, .05, .10]], [[.08, .08, .08]]], variant)
    x, y = pixels(layers)
    size = x.max() + 1
    angle = torch.atan2(y / size - .5, x / size - .5)
    pane = torch.remainder(angle * 8 / math.pi, 1)
    joints = ((torch.minimum(pane, 1 - pane) < .06) & (layers.figure < .5)).float()
    image = saturate(layers.color, 2.2) * (1.05 + .35 * layers.shade) * (.85 + .3 * torch.remainder(torch.floor(angle * 8 / math.pi) * .37, 1) * (1 - layers.figure))
    line = torch.maximum(stroke(layers, 8), joints)
    return image * (1 - line) + lead * line


STYLES = (photo, cartoon, pixel, ink, watercolor, popart, neon, chalk, sepia, poster, blueprint, glass)
NAMES = tuple(style.__name__ for style in STYLES)
HELD_OUT = ("blueprint", "glass")     # the diffusion model never saw these
TRAINED = tuple(name for name in NAMES if name not in HELD_OUT)


def paint(layers: Layers, style: torch.Tensor, variant: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Layers of B portraits, style and palette index [B] -> pictures [B, 3, S, S] from 0 to 1."""
    out = torch.empty_like(layers.color)
    for number, function in enumerate(STYLES):
        rows = (style == number).nonzero()[:, 0]
        if len(rows):
            chosen = Layers(*(getattr(layers, field)[rows] for field in Layers.__dataclass_fields__))
            out[rows] = function(chosen, variant[rows], generator).clamp(0, 1)
    return out


def render(who: dict[str, torch.Tensor], style: torch.Tensor, variant: torch.Tensor, generator: torch.Generator, size: int = 256,
           zoom: float = ZOOM) -> torch.Tensor:
    """Identities, style and palette index [B] -> pictures [B, 3, size, size] from 0 to 1."""
    return paint(draw(who, size, zoom), style, variant, generator)
