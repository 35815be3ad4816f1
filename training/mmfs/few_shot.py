"""Phase 4: the decoder learns one style from a picture or a text; equations (4), (7) and (8).

The style w comes from the frozen mapper and stays, so what the photos give (features, structure, CLIP's view) is
computed once. Micro-batches do not change the gradients: noise and the anchor belong to the whole batch.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...stylegan import losses
from ...stylegan.stylizer import Stylizer

ENOUGH = 16  # photos; fewer may be learnt by heart
ANCHOR = "photo"  # the text that stands for all photos where a text is the target
TRAINED = ("decoder", "to_rgb")
CACHED = 256  # photos; each takes about 7 MB at 512 pixels


class Guide(Protocol):
    """CLIP and DINO, frozen. Pictures [B, 3, h, w] in [0, 1]; gradients pass to them."""

    def see(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(unit features [B, D], patches [B, patches, C] after CLIP's fourth layer)"""

    def keys(self, pictures: torch.Tensor) -> torch.Tensor:
        """DINO's keys [B, tokens, C]"""


@dataclass(frozen=True, eq=False)
class Target:
    """Where to go. feature [D] of the style; patches [n, C] of a style picture; anchor [D]: E("photo") of a text."""

    feature: torch.Tensor
    patches: torch.Tensor | None = None
    anchor: torch.Tensor | None = None

    def __post_init__(self):
        if (self.patches is None) == (self.anchor is None):
            raise ValueError("a target is a picture, with patches, or a text, with an anchor")


@dataclass(frozen=True)
class Settings:
    """Defaults of the paper and its code are in config/4-few-shot.json. The weights are those of (5), (7) and (8)."""

    steps: int
    batch: int
    micro_batch: int
    rate: float
    betas: Sequence[float]
    ema: float
    structure: float
    clip: float
    projection: float
    style_jitter: bool


class NotFinite(ValueError):
    """The loss or a gradient is NaN or infinite; the average has not taken this step."""


class FewShot:
    """The training: `network` and its running `average` move, `photos` [n][3, S, S] in [-1, 1] stay.

    The networks lie on one device, photos may lie elsewhere. Raises ValueError for a network without CLIP mapper.
    """

    def __init__(
        self,
        network: Stylizer,
        guide: Guide,
        photos: Sequence[torch.Tensor],
        target: Target,
        settings: Settings,
        seed: int = 0,
    ):
        self.network, self.guide, self.photos = network, guide, photos
        self.target, self.settings = target, settings
        self.network.requires_grad_(False)
        trained = (value for name, value in network.named_parameters() if name.startswith(TRAINED))
        self.parameters = [value.requires_grad_() for value in trained]
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.parameters, settings.rate, tuple(settings.betas))
        self.generator = torch.Generator().manual_seed(seed)
        self.device, self.dtype = target.feature.device, next(network.parameters()).dtype
        self.basis = None if target.patches is None else losses.span(target.patches)
        self.style = network.eval().style_from_clip(target.feature[None].to(self.dtype))
        self.photo = functools.lru_cache(maxsize=CACHED)(self._photo)
        self.done = 0

    def state_dict(self) -> dict:
        """All that changes, for a training that is interrupted."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")}
        return {**parts, "random": self.generator.get_state(), "done": self.done}

    def load_state_dict(self, state: dict) -> None:
        for name in ("network", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["random"])
        self.done = state["done"]

    @torch.no_grad()
    def _photo(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features, structure and CLIP's view of a photo, each with a batch of 1."""
        picture = self.photos[number][None].to(self.device, self.dtype)
        unit = (picture + 1) / 2
        structure = losses.self_similarity(self.guide.keys(unit)) if self.settings.structure else unit.new_zeros(1)
        return self.network.encode(picture), structure, self.guide.see(unit)[0]

    def rows(self) -> list[int]:
        """The photos of a step, without replacement; over again where there are fewer."""
        order = torch.randperm(len(self.photos), generator=self.generator).tolist()
        return [order[k % len(order)] for k in range(self.settings.batch)]

    def styles(self) -> torch.Tensor:
        """w [styles, 1, width]; with jitter [styles, batch, width], under the mapper's dropout as published."""
        if not self.settings.style_jitter:
            return self.style
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
            self.network.clip_mapper.train()
            try:
                feature = self.target.feature[None].to(self.dtype).expand(self.settings.batch, -1)
                return self.network.style_from_clip(feature)
            finally:
                self.network.clip_mapper.eval()

    def gradients(self) -> dict[str, float]:
        """The gradients of one batch, in parts of micro_batch pictures; returns the loss and its terms."""
        whole, told = self.settings.batch, {}
        features, structures, views = (torch.cat(part) for part in zip(*map(self.photo, self.rows())))
        style = self.styles()
        size = [side * self.network.stride for side in features.shape[2:]]
        noise = self.network.noise_maps(whole, size, self.generator, self.device)
        anchor = views.mean(0) if self.target.anchor is None else self.target.anchor
        for start in range(0, whole, self.settings.micro_batch):
            rows = slice(start, start + self.settings.micro_batch)
            maps = [layer[rows].to(self.dtype) for layer in noise]
            vectors = style if style.shape[1] == 1 else style[:, rows]
            fake = (self.network.decode(features[rows], vectors, maps) + 1) / 2
            terms, share = self.terms(fake, structures[rows], views[rows], anchor), len(fake) / whole
            sum(weight * value for weight, value in terms.values()).mul(share).backward()
            for name, (weight, value) in terms.items():
                told[name] = told.get(name, 0.0) + float(value.detach()) * share
                told["loss"] = told.get("loss", 0.0) + weight * float(value.detach()) * share
        return told

    def terms(self, fake, structures, views, anchor) -> dict[str, tuple[float, torch.Tensor]]:
        """{name: (weight, loss)} of stylized pictures in [0, 1]; projection for a style picture only."""
        seen, patches = self.guide.see(fake)
        terms = {"clip": (self.settings.clip, losses.direction(seen, views, self.target.feature, anchor))}
        if self.settings.structure:
            similarity = losses.self_similarity(self.guide.keys(fake))
            terms["structure"] = self.settings.structure, losses.structure(similarity, structures)
        if self.basis is not None:
            terms["projection"] = self.settings.projection, losses.projection(patches, self.basis)
        return terms

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Trains; the loss and its terms after every step that is left. Raises NotFinite."""
        while self.done < self.settings.steps:
            self.optimizer.zero_grad()
            told = self.gradients()
            slope = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf)  # clips nothing: the norm is wanted
            if not math.isfinite(told["loss"]) or not bool(torch.isfinite(slope)):
                raise NotFinite(
                    f"the loss or its gradient is not finite at step {self.done + 1} of {self.settings.steps}"
                )
            self.optimizer.step()
            follow(self.average, self.network, self.settings.ema)
            self.done += 1
            yield told


@torch.no_grad()
def follow(average: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    """The running average of the parameters, which begins where they did."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
