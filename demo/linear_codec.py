"""The autoencoder of the weights that ship today; ``codec.py`` takes its place when they are replaced.

The encoder is linear: the principal components of 16 x 16 patches, their spreads drawn together by a square root so that
fine components matter to the diffusion model without drowning colour. The decoder adds a small convolutional network
that knows what portraits look like and so restores what the components lost; it is trained on noisy latents as well.
"""

from __future__ import annotations

import torch
import torch.nn as nn

CHANNELS, DOWN = 16, 16      # latent channels; pixels of a latent cell's side


def _conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x):
        return torch.relu(x + self.body(x))


class LinearCodec(nn.Module):
    """Pictures [B, 3, 16h, 16w] from -1 to 1 <-> latents [B, 16, h, w] whose mean square is 1."""

    channels = CHANNELS

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, CHANNELS, DOWN, DOWN)
        self.expand = nn.ConvTranspose2d(CHANNELS, 3, DOWN, DOWN)
        self.decoder = nn.Sequential(
            _conv(CHANNELS, 96), nn.ReLU(), Residual(96), Residual(96), _conv(96, 64 * 4), nn.PixelShuffle(2), nn.ReLU(),
            Residual(64), Residual(64), _conv(64, 32 * 4), nn.PixelShuffle(2), nn.ReLU(), Residual(32),
            _conv(32, 16 * 4), nn.PixelShuffle(2), nn.ReLU(), _conv(16, 12), nn.PixelShuffle(2))

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.project(pictures)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        latents = 6 * torch.tanh(latents / 6)       # a soft bound keeps the sampler's outliers from bursting into spots
        return self.expand(latents) + self.decoder(latents)

    def preview(self) -> tuple[list[list[float]], list[float]]:
        """What each latent channel looks like, the mean of its linear patch: [16][3] factors and [3] bias of red, green and blue."""
        return self.expand.weight.mean((2, 3)).tolist(), self.expand.bias.tolist()
