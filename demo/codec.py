"""The microworld's autoencoder: 256-pixel pictures to 16 x 16 latents of unit spread, and back.

Convolutional at both ends. It learns with noise on its latents (``making/codec.py``), so that a decoded latent that a
sampler has drawn comes out as clean as one that was encoded.
"""

from __future__ import annotations

import torch
import torch.nn as nn

CHANNELS, DOWN = 24, 16      # latent channels; pixels of a latent cell's side


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


def _up(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs * 4), nn.PixelShuffle(2))


class Residual(nn.Module):
    """Starts as the identity. Without the normalisation nothing is learned at a useful rate."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.first, self.second = nn.GroupNorm(8, width), _conv(width, width), _conv(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x):
        return x + self.second(nn.functional.silu(self.first(nn.functional.silu(self.norm(x)))))


class Codec(nn.Module):
    """Pictures [B, 3, 16h, 16w] from -1 to 1 <-> latents [B, CHANNELS, h, w], each channel of mean 0 and spread 1."""

    channels = CHANNELS

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4), _conv(48, 96), Residual(96), _conv(96, 128, 2), Residual(128),
            _conv(128, 160, 2), Residual(160), Residual(160), nn.GroupNorm(8, 160), nn.SiLU(), _conv(160, CHANNELS))
        self.decoder = nn.Sequential(
            _conv(CHANNELS, 160), Residual(160), Residual(160), Residual(160),
            _up(160, 128), Residual(128), Residual(128), _up(128, 96), Residual(96), Residual(96), nn.GroupNorm(8, 96), nn.SiLU(), _conv(96, 64), nn.SiLU(),
            _conv(64, 48), nn.PixelShuffle(4))
        self.register_buffer("mean", torch.zeros(CHANNELS, 1, 1))        # of what the encoder gives, over the world
        self.register_buffer("spread", torch.ones(CHANNELS, 1, 1))
        self.register_buffer("colors", torch.zeros(CHANNELS + 1, 3))     # of the channels and of nothing, for previews

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return (self.encoder(pictures) - self.mean) / self.spread

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        latents = 6 * torch.tanh(latents / 6)       # a soft bound keeps the sampler's outliers from bursting into spots
        return self.decoder(latents * self.spread + self.mean)

    @torch.no_grad()
    def settle(self, pictures: torch.Tensor) -> None:
        """After training: scale the latents by pictures [N, 3, 16h, 16w] of the world; learn what channels look like."""
        raw = torch.cat([self.encoder(part) for part in pictures.split(32)])
        self.mean.copy_(raw.mean((0, 2, 3)).view(-1, 1, 1))
        self.spread.copy_(raw.std((0, 2, 3)).view(-1, 1, 1))
        cells = nn.functional.avg_pool2d(pictures, DOWN).movedim(1, -1).reshape(-1, 3)
        latents = ((raw - self.mean) / self.spread).movedim(1, -1).reshape(len(cells), -1)
        known = torch.cat([latents, torch.ones_like(latents[:, :1])], 1)
        self.colors.copy_(torch.linalg.lstsq(known, cells).solution)

    def preview(self) -> tuple[list[list[float]], list[float]]:
        """What each latent channel looks like: [CHANNELS][3] factors and [3] bias of red, green and blue from -1 to 1."""
        return self.colors[:-1].tolist(), self.colors[-1].tolist()
