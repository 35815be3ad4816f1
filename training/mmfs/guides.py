"""CLIP and DINO outside ComfyUI, frozen: the Guide of few-shot training, and what phases 2 and 3 compare."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from ...evaluation.clip_model import TOKENS, Clip
from ...stylegan import dino
from ..stage import log


class Guides:
    """clip: a folder with config.json and model.safetensors; keys: a file of DINO. Either may be missing.

    Raises ValueError or EvaluationError for files that are neither.
    """

    def __init__(self, clip: Path | None, keys: Path | None, device: str):
        self.clip = None if clip is None else Clip(clip, device)
        if self.clip is not None:
            self.clip.model.requires_grad_(False)
        self.dino = None if keys is None else dino.load(keys).to(device)

    def see(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.clip.see(pictures)

    def keys(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.dino(pictures)

    @torch.no_grad()
    def style(self, picture: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """(feature [D], patches [n, C]) of a picture's file."""
        with Image.open(picture) as image:
            features, patches = self.clip.see(self.clip.cut(image.convert("RGB"))[None])
        return features[0], patches[0]

    @torch.no_grad()
    def words(self, text: str) -> torch.Tensor:
        """The feature [D] of a text."""
        if len(self.clip.tokenize(text)["input_ids"]) > TOKENS:
            log.warning("CLIP reads %d tokens; the end of '%s...' is left out.", TOKENS, text[:40])
        return self.clip.text(text)
