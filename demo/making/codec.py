"""The first stage: the autoencoder learns the world's pictures."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...training.stage import Stage, descend, follow, half, lay_out, processes, warm
from ..codec import DOWN, Codec
from .muon import Muon
from .pictures import batch_of, held_out

IMAGES, RATE = 100_000, .03
WINDOW = 128              # pixels: a quarter of a picture is enough to learn from, until the last part of the time
WHOLE_FROM = .8           # of the time; the normalisation sees other statistics in whole pictures
CRITIC_FROM = .5
NOISE = .3                # most noise on the latents


def critic_of_patches() -> nn.Sequential:
    """Pictures -> how real each patch looks. Without it edges come out soft."""
    widths, layers = (3, 32, 64, 96), []
    for inputs, outputs in zip(widths, widths[1:]):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.LeakyReLU(.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, 1, 1))


def difference(drawn: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """How far pictures are apart: in colour, and in the slopes that make edges."""
    error = drawn - truth
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.pow(2).mean() + .5 * slopes


class Critics:
    """A critic that learns beside a decoder and tells it what gives its pictures away."""

    def __init__(self, device: str):
        self.device, self.network = device, lay_out(critic_of_patches(), device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 4e-4, betas=(.5, .98))

    def learn(self, drawn: torch.Tensor, truth: torch.Tensor) -> None:
        with half(self.device):
            true, false = self.network(truth).float(), self.network(drawn.detach()).float()
        descend(self.optimizer, F.relu(1 - true).mean() + F.relu(1 + false).mean(), 4e-4)

    def blame(self, drawn: torch.Tensor) -> torch.Tensor:
        with half(self.device):
            return -.01 * self.network(drawn).float().mean()


def windows(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """The same random window of every picture [B, 3, S, S] -> [B, 3, side, side].

    Not only whole cells, or the borders of cells learn to show.
    """
    top, left = torch.randint(pictures.shape[-1] - side + 1, (2,)).tolist()
    return pictures[..., top:top + side, left:left + side].contiguous(memory_format=torch.channels_last)


def train(folder: Path, share: float, device: str) -> dict:
    """The codec's weights after ``share`` of the full training; the held-out pictures are left out."""
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    first = held_out(len(pictures))
    torch.manual_seed(11)
    codec, critic, size = lay_out(Codec(), device), Critics(device), (32 if device == "cpu" else 64) // processes()
    average = copy.deepcopy(codec).requires_grad_(False)
    optimizer = Muon(codec.parameters(), RATE)
    stage = Stage(folder / "codec.progress", int(IMAGES * share / size / processes()), codec=codec, average=average,
                  optimizer=optimizer, critic=critic.network, critic_optimizer=critic.optimizer)
    for step, progress in stage:
        whole = progress > WHOLE_FROM
        count = size // 4 if whole else size
        x = batch_of(pictures, torch.randint(first, len(pictures), (count,)).tolist(), device)
        x = windows(x, x.shape[-1] if whole else WINDOW)
        with half(device):
            z = codec.encoder(x).float()
            drawn = codec.decoder(z + NOISE * torch.rand(count, 1, 1, 1, device=device) * torch.randn_like(z))
        drawn = drawn.float()
        loss = difference(drawn, x) + .02 * ((z.var((0, 2, 3)) - 1).pow(2).mean() + z.mean((0, 2, 3)).pow(2).mean())
        stage.tell(loss)
        if progress > CRITIC_FROM:
            critic.learn(drawn, x)
            loss = loss + critic.blame(drawn)
        descend(optimizer, loss, RATE * warm(step) * (1 - .99 * progress))
        follow(average, codec, step, .995)
    rows = torch.linspace(first, len(pictures) - 1, 512).long().unique().tolist()
    average.settle(batch_of(pictures, rows, device))
    return average.state_dict()


def cell_ratio(pictures: torch.Tensor) -> float:
    """Mean step between neighbouring pixels across the borders of cells over that elsewhere; renders have .9 to 1.2."""
    step = pictures.diff(dim=-1).abs().mean((0, 1, 2))
    border = torch.arange(len(step), device=step.device) % DOWN == DOWN - 1
    return float(step[border].mean() / step[~border].mean())


def decibels(drawn: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Peak signal to noise ratio [B] of pictures from -1 to 1."""
    return -10 * torch.log10((drawn - truth).pow(2).mean((1, 2, 3)) / 4)


@torch.no_grad()
def measure(codec: Codec, pictures: torch.Tensor) -> dict[str, torch.Tensor | float]:
    """Pictures [N, 3, 16h, 16w] from -1 to 1 -> decibels [N], clean and with noise on the latents; ratios of cells."""
    z = codec.encode(pictures)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z.device)
    clean, noisy = codec.decode(z).clamp(-1, 1), codec.decode(z + NOISE * noise).clamp(-1, 1)
    return {"clean": decibels(clean, pictures), "noisy": decibels(noisy, pictures),
            "cells": cell_ratio(clean), "noisy cells": cell_ratio(noisy), "renders' cells": cell_ratio(pictures)}
