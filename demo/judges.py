"""Readouts of the microworld: which style, who, and whether there is a face at all.

Trained on renders only. What they say of a sampled picture is bounded by their own error on held-out renders, which the
demo's README states.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from .portraits import FLAGS, HAIR_CUTS, HATS, RANGES
from .styles import NAMES

# Parameters that show in every style; the sampled light or the gaze would only add noise to the error.
GEOMETRY = ("width", "height", "jaw", "x", "y", "tilt", "eye_size", "eye_gap", "eye_y", "nose", "mouth_width", "mouth_y")
TRAITS = ("open_mouth", "glasses", "beard", *(f"cut {name}" for name in HAIR_CUTS), *(f"hat {name}" for name in HATS))


def geometry_of(who: dict[str, torch.Tensor]) -> torch.Tensor:
    """Identities of B portraits -> [B, 12], each parameter scaled to mean 0 and standard deviation 1 over the world."""
    columns = []
    for name in GEOMETRY:
        low, high = RANGES[name]
        columns.append((who[name] - (low + high) / 2) / ((high - low) / 12 ** .5))
    return torch.stack(columns, 1)


def traits_of(who: dict[str, torch.Tensor]) -> torch.Tensor:
    """Identities of B portraits -> [B, 12] of 0 and 1."""
    columns = [who[name] for name in TRAITS if name in FLAGS]
    columns += [(who["cut"] == number).float() for number in range(len(HAIR_CUTS))]
    columns += [(who["hat"] == number).float() for number in range(len(HATS))]
    return torch.stack(columns, 1)


class Judges(nn.Module):
    """Pictures [B, 3, S, S] from 0 to 1 -> dict of style logits [B, 12], geometry [B, 12], trait logits [B, 12], face logit [B]."""

    def __init__(self):
        super().__init__()
        widths, layers = (3, 20, 40, 64, 96), []
        for inputs, outputs in zip(widths, widths[1:]):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
                       nn.Conv2d(outputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.where = nn.Conv2d(96, 24, 1)                            # keeps places, for geometry
        self.style = nn.Linear(96 * 2, len(NAMES))
        self.geometry = nn.Linear(24 * 16 + 96, len(GEOMETRY))
        self.traits = nn.Linear(24 * 16 + 96, len(TRAITS))
        self.face = nn.Linear(24 * 16 + 96, 1)

    def forward(self, pictures):
        x = self.trunk(F.interpolate(pictures, (64, 64), mode="area") * 2 - 1)
        mean, spread = x.mean((2, 3)), x.std((2, 3))
        flat = torch.cat([self.where(x).flatten(1), mean], 1)
        return {"style": self.style(torch.cat([mean, spread], 1)), "geometry": self.geometry(flat), "traits": self.traits(flat), "face": self.face(flat)[:, 0]}


def identity_error(judges: Judges, pictures: torch.Tensor, who: dict[str, torch.Tensor]) -> torch.Tensor:
    """Root mean square error [B] of the read geometry against the truth; 1 is what guessing the mean gives."""
    return (judges(pictures)["geometry"].clamp(-3, 3) - geometry_of(who)).pow(2).mean(1).sqrt()


def _filters(device):
    generator = torch.Generator().manual_seed(7)
    bank = torch.randn(24, 3, 5, 5, generator=generator)
    bank = bank - bank.mean((2, 3), keepdim=True) * (torch.arange(24) < 18).view(24, 1, 1, 1)    # 18 see edges, 6 colour
    return (bank / bank.flatten(1).norm(dim=1).view(24, 1, 1, 1)).to(device)


def style_features(pictures: torch.Tensor) -> torch.Tensor:
    """Readout-free style of pictures [B, 3, S, S]: colour moments and Gram matrices of fixed random filters -> [B, D]."""
    x = F.interpolate(pictures.clamp(0, 1), (128, 128), mode="area")
    centred = (x - x.mean((2, 3), keepdim=True)).flatten(2)
    features = [x.mean((2, 3)), x.std((2, 3)), (centred @ centred.transpose(1, 2) / centred.shape[-1]).flatten(1) * 4]
    for _ in range(3):
        response = F.relu(F.conv2d(x, _filters(x.device))).flatten(2)
        features.append((response @ response.transpose(1, 2) / response.shape[-1]).flatten(1).sqrt())
        x = F.avg_pool2d(x, 2)
    return torch.cat(features, 1)


def style_distance(pictures: torch.Tensor, references: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Distance [B] of style features, each in units of its ``spread`` [D] over the world's renders."""
    return ((style_features(pictures) - style_features(references)) / spread).clamp(-6, 6).pow(2).mean(1).sqrt()


def outline(pictures: torch.Tensor) -> torch.Tensor:
    """Normalised edge map [B, N] of pictures, blind to colour: what content looks like without style."""
    gray = F.interpolate(pictures.clamp(0, 1).mean(1, keepdim=True), (64, 64), mode="area")
    dx, dy = F.pad(gray[..., 1:] - gray[..., :-1], (0, 1)), F.pad(gray[..., 1:, :] - gray[..., :-1, :], (0, 0, 0, 1))
    edges = F.avg_pool2d((dx ** 2 + dy ** 2 + 1e-6).sqrt(), 3, 1, 1).flatten(1)
    return F.normalize(edges - edges.mean(1, keepdim=True), dim=1)


def structure(pictures: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
    """Correlation [B] of edge maps with the content's, 1 for the same outlines."""
    return (outline(pictures) * outline(contents)).sum(1)
