"""MMFS in the microworld, measured against its ground truth, by the nodes' own code.

Every number speaks of procedural portraits of 64 pixels only: it shows that what was trained does what MMFS claims,
not how good photographs become.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from ..host import mmfs, mmfs_few_shot
from ..training.mmfs import few_shot
from . import checkpoint, judges
from .mmfs import guidance, network
from .portraits import draw, sample_identities
from .styles import NAMES, TRAINED, VARIANTS, paint

SIDE, SEED = 64, 95_000  # no training seed comes near
ART = TRAINED[1:]


def people(count: int, seed: int = SEED) -> dict[str, torch.Tensor]:
    return sample_identities(count, torch.Generator().manual_seed(seed))


def render(who: dict[str, torch.Tensor], style: torch.Tensor, seed: int = SEED) -> torch.Tensor:
    """People in styles [B] with random palettes: [B, 3, 64, 64] from 0 to 1."""
    generator, parts = torch.Generator().manual_seed(seed + 1), []
    for rows in torch.arange(len(style)).split(16):
        layers = draw({name: value[rows] for name, value in who.items()}, 2 * SIDE)
        variant = torch.randint(VARIANTS, (len(rows),), generator=generator)
        parts.append(F.avg_pool2d(paint(layers, style[rows], variant, generator), 2))
    return torch.cat(parts)


def numbers(names, count: int) -> torch.Tensor:
    """The styles' numbers [count], taking turns."""
    return torch.tensor([NAMES.index(names[k % len(names)]) for k in range(count)])


def image(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.movedim(1, -1)


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of features [n, D] each, as in FID."""
    a, b = a.double(), b.double()
    root = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * root)


class Studio:
    """What was trained in a folder, and who judges it."""

    def __init__(self, folder: Path):
        self.folder, self.world = folder, checkpoint.load()
        self.guidance = guidance(folder / "guides")

    def model(self, phase: str) -> mmfs.Network:
        return network(next((self.folder / phase).glob(f"{phase}-*.safetensors")))

    def stylize(self, model: mmfs.Network, photos: torch.Tensor, style: mmfs.Style) -> torch.Tensor:
        """Photos [B, 3, 64, 64] in one style, or one each."""
        return mmfs.stylize(model, image(photos), style, None, 0.0, "fixed", 0, "measure").movedim(-1, 1)

    def random(self, model: mmfs.Network, photos: torch.Tensor, seed: int) -> torch.Tensor:
        """Each photo in a random style of its own."""
        styles = [mmfs.seed_style(model, seed + row, 0, model.module.styles).vectors for row in range(len(photos))]
        return self.stylize(model, photos, mmfs.Style(torch.cat(styles, 1), "random"))

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """What the style readout looks at, [B, 192]."""
        x = self.world.judges.trunk(F.interpolate(pictures, (64, 64), mode="area") * 2 - 1)
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)

    def kept(self, pictures: torch.Tensor, photos: torch.Tensor, who: dict) -> dict[str, float]:
        told = self.world.judges(pictures)
        return {
            "identity": float(judges.identity_error(self.world.judges, pictures, who).mean()),
            "structure": float(judges.structure(pictures, photos).mean()),
            "photo": float(told["style"].softmax(1)[:, 0].mean()),
            "face": float((told["face"] > 0).float().mean()),
        }

    def distance(self, pictures: torch.Tensor, references: torch.Tensor) -> float:
        return float(judges.style_distance(pictures, references, self.world.spread).mean())

    def asked(self, pictures, photos, who, style: int, reference, other) -> dict[str, float]:
        """style, other: distance to the reference [1, 3, 64, 64] that was asked for and to another, NaN for words; as
        asked: probability of the style with this number; and what `kept` tells."""
        kept = self.kept(pictures, photos, who)
        near = {
            name: float("nan") if to is None else self.distance(pictures, to.expand_as(pictures))
            for name, to in (("style", reference), ("other", other))
        }
        return {**near, "as asked": float(self.world.judges(pictures)["style"].softmax(1)[:, style].mean()), **kept}

    def tuned(
        self, model: mmfs.Network, photos: torch.Tensor, picture, text: str, steps: int, **changes
    ) -> mmfs.Network:
        """Few-shot training as MMFS Few-shot has it, but for its settings in `changes`."""
        chosen = few_shot.Settings(**{**mmfs_few_shot.DEFAULTS, "steps": steps, "micro_batch": 8, **changes})
        with torch.inference_mode(False), torch.enable_grad():
            return mmfs_few_shot.train(model, self.guidance, image(photos).clone(), picture, text, 0, chosen)[0]

    def guided(self, model: mmfs.Network, photos: torch.Tensor, picture, text: str) -> torch.Tensor:
        """Photos in the style that the CLIP mapper makes of a picture, IMAGE of one, or of a text."""
        return self.stylize(model, photos, mmfs.prompt_style(model, self.guidance, picture, text, "measure"))
