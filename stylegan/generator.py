"""StyleGAN2's generator in the layout that JoJoGAN, StyleGAN-NADA and Mind the Gap share (`g_ema`)."""

import torch
from torch import nn

from .layers import EqualLinear, PixelNorm, StyledConv, ToRGB, channels_last, draw_noise, normal


class Constant(nn.Module):
    """The learned feature map [1, C, 4, 4] that every picture begins with."""

    def __init__(self, channels: int):
        super().__init__()
        self.input = normal(1, channels, 4, 4)

    def forward(self, batch):
        return self.input.expand(batch, -1, -1, -1)


class Generator(nn.Module):
    """Faces from noise. channels: those at 4, 8, ... pixels; by default those of the usual files for 512 pixels.

    It has layers = 2 * len(channels) styles of its own: conv1, to_rgb1, and two more for each doubling (a layer's RGB has the
    style of the layer after it).
    """

    def __init__(self, channels: tuple[int, ...] = (512, 512, 512, 512, 512, 256, 128, 64), style: int = 512, mapping_layers: int = 8):
        super().__init__()
        self.channels, self.size, self.layers = tuple(channels), 2 ** (len(channels) + 1), 2 * len(channels)
        first = channels[0]
        self.style = nn.Sequential(PixelNorm(), *[EqualLinear(style, style, rate=0.01, activated=True) for _ in range(mapping_layers)])
        self.width = style
        self.input = Constant(first)
        self.conv1, self.to_rgb1 = StyledConv(first, first, style), ToRGB(first, style, up=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for inputs, outputs in zip(channels, channels[1:]):
            self.convs.extend([StyledConv(inputs, outputs, style, up=True), StyledConv(outputs, outputs, style)])
            self.to_rgbs.append(ToRGB(outputs, style))
        for number, size in enumerate(self.noise_sizes()):
            self.noises.register_buffer(f"noise_{number}", normal(1, 1, *size).detach())

    def noise_sizes(self) -> list[tuple[int, int]]:
        return [(4 * 2**level,) * 2 for level in [0, *(level for level in range(1, len(self.channels)) for _ in "ab")]]

    def noise_maps(self, batch: int, seed: int | torch.Generator, device="cpu") -> list[torch.Tensor]:
        """Fresh noise; None instead of it is the noise in the file."""
        return draw_noise(self.noise_sizes(), batch, seed, device)

    def map(self, z: torch.Tensor) -> torch.Tensor:
        """z [B, width], normally distributed, to w [B, width]."""
        return self.style(z)

    @torch.no_grad()
    def mean_w(self, samples: int = 4096, seed: int = 0) -> torch.Tensor:
        """The average w [1, width], towards which truncation pulls."""
        z = torch.randn(samples, self.width, generator=torch.Generator().manual_seed(seed))
        return self.style(z.to(self.input.input)).mean(0, keepdim=True)

    def styles(self, w: torch.Tensor) -> torch.Tensor:
        """w [B, width] for all layers: [layers, B, width]."""
        return w.expand(self.layers, -1, -1)

    def forward(self, styles: torch.Tensor, noise: list[torch.Tensor] | None = None) -> torch.Tensor:
        """Styles [layers, B, width] to pictures [B, 3, S, S], about from -1 to 1, not cut off. noise: `noise_maps`; None: the file's."""
        if len(styles) != self.layers:
            raise ValueError(f"styles of {len(styles)} layers for a generator of {self.layers}")
        noise = iter(noise or [getattr(self.noises, f"noise_{number}") for number in range(self.layers - 1)])
        x = self.conv1(channels_last(self.input(styles.shape[1]).to(styles)), styles[0], next(noise))
        picture = self.to_rgb1(x, styles[1])
        for level, to_rgb in enumerate(self.to_rgbs):
            x = self.convs[2 * level](x, styles[2 * level + 1], next(noise))
            x = self.convs[2 * level + 1](x, styles[2 * level + 2], next(noise))
            picture = to_rgb(x, styles[2 * level + 3], picture)
        return picture


def truncated(w: torch.Tensor, mean: torch.Tensor, amount: float) -> torch.Tensor:
    """w pulled towards the mean: `amount` 1 leaves it, 0 is the mean face."""
    return torch.lerp(mean.to(w), w, amount)
