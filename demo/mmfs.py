"""The microworld's MMFS and its guides, as Load MMFS and CLIP Similarity Loader give the real ones."""

from __future__ import annotations

from pathlib import Path

import torch

from ..evaluation.clip_model import Clip
from ..host import mmfs
from ..host.clip_similarity import Similarity
from ..stylegan import checkpoints, dino


def network(path: Path) -> mmfs.Network:
    """MMFS_MODEL of a file. Raises ValueError for what is none."""
    found = checkpoints.read(path)
    with torch.inference_mode(False):  # few-shot training goes on with these weights
        return mmfs.wrap(checkpoints.network(found), path.stem, found.phase, found.metadata)


def guidance(folder: Path) -> Similarity:
    """ATELIER_GUIDANCE of a folder with `clip` and `dino.safetensors`. Raises EvaluationError or ValueError."""
    with torch.inference_mode(False):  # few-shot training sends gradients through
        clip = Clip(folder / "clip", "cpu")
        clip.model.requires_grad_(False)
        return Similarity(clip, dino.load(folder / "dino.safetensors"))
