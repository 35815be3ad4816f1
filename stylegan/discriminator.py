"""StyleGAN2's discriminator, whose features also compare pictures in MMFS (equation 1)."""

import torch
from torch import nn

from .layers import ConvLayer, EqualLinear, ResBlock, channels_last

TAPS = (1, 3, 4, 5)  # the layers of `convs` whose features equation (1) compares
GROUP = 4


def spread(x: torch.Tensor) -> torch.Tensor:
    """One channel more for x [B, C, H, W]: how much the pictures of a group differ, averaged over channels and pixels.

    Picture b shares a group with b + B/g, b + 2B/g ...; g is the largest divisor of B up to 4.
    """
    batch = len(x)
    group = max(g for g in range(1, GROUP + 1) if batch % g == 0)
    grouped = x.view(group, batch // group, *x.shape[1:])
    deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, deviation.repeat(group).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1)


class Discriminator(nn.Module):
    """Pictures [B, 3, S, S] to logits [B, 1], high for real ones.

    channels: those at S, S/2, ... 4; by default those of the published file, for S = 512.
    """

    def __init__(self, channels: tuple[int, ...] = (64, 128, 256, 512, 512, 512, 512, 512)):
        super().__init__()
        self.channels, self.size = tuple(channels), 2 ** (len(channels) + 1)
        last = channels[-1]
        self.convs = nn.Sequential(ConvLayer(3, channels[0], 1), *map(ResBlock, channels[:-1], channels[1:]))
        self.final_conv = ConvLayer(last + 1, last, 3)
        self.final_linear = nn.Sequential(EqualLinear(last * 16, last, activated=True), EqualLinear(last, 1))

    def features(self, pictures: torch.Tensor, taps: tuple[int, ...] = TAPS) -> list[torch.Tensor]:
        """The outputs of the layers `taps` of `convs`; those that a small discriminator lacks are left out."""
        found, x = [], channels_last(pictures)
        for number, layer in enumerate(self.convs[:max(taps) + 1]):
            x = layer(x)
            if number in taps:
                found.append(x)
        return found

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if pictures.shape[-2:] != (self.size, self.size):
            raise ValueError(f"pictures of {pictures.shape[-1]} x {pictures.shape[-2]} for a discriminator of {self.size} x {self.size}")
        x = self.final_conv(spread(self.convs(channels_last(pictures))))
        return self.final_linear(x.flatten(1))
