"""The microworld's autoencoder: 256-pixel pictures to 16 x 16 latents of about unit spread, and back.

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


class Codec(nn.Module):
    """Pictures [B, 3, 16h, 16w] from -1 to 1 <-> latents [B, 16, h, w] whose mean square is 1."""

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

    @torch.no_grad()
    def start(self, pictures: torch.Tensor) -> None:
        """Set the linear maps from pictures [N, 3, 16h, 16w] and make the network ready to train."""
        patches = nn.functional.unfold(pictures, DOWN, stride=DOWN).transpose(1, 2).reshape(-1, 3 * DOWN * DOWN)
        mean = patches.mean(0)
        variance, axes = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        spread, axes = variance.flip(0)[:CHANNELS].sqrt(), axes.flip(1)[:, :CHANNELS]
        gain = spread.sqrt() * spread.mean().sqrt()          # latent = component / gain
        self.project.weight.copy_((axes / gain).T.reshape(CHANNELS, 3, DOWN, DOWN))
        self.project.bias.copy_(-(mean @ axes) / gain)
        self.expand.weight.copy_((axes * gain).T.reshape(CHANNELS, 3, DOWN, DOWN))
        self.expand.bias.copy_(mean.reshape(3, -1).mean(1))
        for layer in self.decoder.modules():
            if isinstance(layer, nn.Conv2d):        # without normalisation torch's default would fade layer by layer
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        for layer in self.decoder.modules():
            if isinstance(layer, Residual):
                layer.body[-1].weight.mul_(.3)
        self.decoder[-2].weight.mul_(.05)
