"""What the nodes do in the microworld, measured against its ground truth.

Every number speaks of procedural portraits only: it shows that a knob acts in the direction it should, not how good
photographs become.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import comfy.sample
import comfy_extras.nodes_model_advanced
import torch

from ..host import demo_model
from ..host.extract import extract_features
from ..host.merge import merge_features
from ..host.seac import patched
from . import checkpoint, judges, text
from .portraits import sample_identities, select
from .styles import NAMES, TRAINED, render

HELD_OUT_SEED = 90_000          # no training seed comes near


@dataclass(frozen=True)
class Pairs:
    """B contents (photos), B style references of other people, and what perfect stylization would draw. [B, 3, 256, 256], 0 to 1."""
    contents: torch.Tensor
    references: torch.Tensor
    oracles: torch.Tensor
    who: dict[str, torch.Tensor]
    style: torch.Tensor


def held_out_pairs(count: int = 24, seed: int = HELD_OUT_SEED, styles: tuple[str, ...] = TRAINED[1:]) -> Pairs:
    """Portraits nobody trained on; ``styles`` take turns."""
    generator = torch.Generator().manual_seed(seed)
    who, other = sample_identities(count, generator), sample_identities(count, generator)
    style = torch.tensor([NAMES.index(styles[k % len(styles)]) for k in range(count)])
    variant = torch.randint(4, (count,), generator=generator)
    photo = torch.full_like(style, NAMES.index("photo"))
    drawn = [render(people, chosen, variant, generator) for people, chosen in ((who, photo), (other, style), (who, style))]
    return Pairs(*drawn, who, style)


class Studio:
    """The demo graph around our nodes, on batches of pictures."""

    def __init__(self, path: Path = checkpoint.PATH):
        self.world = checkpoint.load(path)
        base = demo_model.model(self.world.unet, self.world.scale, *self.world.codec.preview())
        self.model = comfy_extras.nodes_model_advanced.ModelSamplingDiscrete().patch(base, "lcm", False)[0]
        self.vae = demo_model.vae(self.world.codec)

    def prompt(self, words: str):
        return [[self.world.text.encode(words), {}]]

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.world.codec.encode(pictures * 2 - 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (self.world.codec.decode(latents) * .5 + .5).clamp(0, 1)

    def sample(self, model, latents, prompt="portrait", steps=4, cfg=2., denoise=1., seed=0) -> torch.Tensor:
        """KSampler lcm, simple: latents [B, 16, h, w] -> latents."""
        noise = comfy.sample.prepare_noise(latents, seed)
        return comfy.sample.sample(model, noise, steps, cfg, "lcm", "simple", self.prompt(prompt), self.prompt(""), latents, denoise=denoise, seed=seed, disable_pbar=True)

    def draw(self, prompt: str, count: int, steps: int = 4, cfg: float = 2., seed: int = 0) -> torch.Tensor:
        """Text to pictures."""
        return self.decode(self.sample(self.model, torch.zeros(count, self.world.codec.channels, 16, 16), prompt, steps, cfg, 1., seed))

    def stylize(self, contents, references, *, style_enhancement=1.2, share=.5, strength=1., timestep=99, merge=.5, steps=4, cfg=2., seed=0) -> torch.Tensor:
        """The demo workflow for each pair. share 1 replaces K and V by the reference's alone; strength 0 is no attention control."""
        z, model = self.encode(contents), self.model
        if strength > 0:
            banks = [extract_features(model, latent, self.prompt("portrait"), self.prompt(""), seed, timestep, "auto") for latent in (z, self.encode(references))]
            banks = [merge_features(bank, merge, seed, False) if merge else bank for bank in banks]
            model = patched(model, *banks, style_enhancement=style_enhancement, strength=strength, style_share=share, start=0., end=1., layers="auto", mask=None, per_group=False, cycle=True)
        return self.decode(self.sample(model, z, "portrait", steps, cfg, .5, seed))

    def judge(self, pictures: torch.Tensor, pairs: Pairs) -> dict[str, float]:
        """Means over the pairs. 'other' is the distance to the next pair's reference, 'structure' correlates outlines with the content's."""
        distance = lambda references: float(judges.style_distance(pictures, references, self.world.spread).mean())
        told = self.world.judges(pictures)
        return {
            "style": distance(pairs.references),
            "other": distance(pairs.references.roll(1, 0)),
            "as reference": float((told["style"].softmax(1)[torch.arange(len(pictures)), pairs.style]).mean()),
            "identity": float(judges.identity_error(self.world.judges, pictures, pairs.who).mean()),
            "structure": float(judges.structure(pictures, pairs.contents).mean()),
            "face": float((told["face"] > 0).float().mean()),
        }
