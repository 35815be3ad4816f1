"""Weights are looked for in folders and never downloaded."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

from .errors import EvaluationError, MissingWeights
from .pictures import first_line

ROOT = Path(__file__).resolve().parents[1]


def model_folders(given: list[Path]) -> list[Path]:
    """The folders called `models`: those given, else ComfyUI's and the one of `.atelier/`."""
    if given:
        return given
    comfyui = os.environ.get("COMFYUI_PATH")
    return ([Path(comfyui) / "models"] if comfyui else []) + [ROOT / ".atelier" / "base" / "models"]


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a .pth/.bin one that holds nothing but tensors. Raises EvaluationError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the safe readers raise anything, down to struct.error
        raise EvaluationError(f"{path} cannot be read as weights: {first_line(error)}") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise EvaluationError(f"{path} is no plain list of tensors: save the model's state_dict")
    return tensors


def fill(network: torch.nn.Module, tensors: dict, path: Path, device) -> torch.nn.Module:
    """`network` (made on the device "meta") with the file's tensors, all of them and no others. Raises EvaluationError."""
    try:
        network.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise EvaluationError(f"{path} holds other weights than the metric needs: {' '.join(lines[1:2])[:200]}") from None
    return network.to(device).eval().requires_grad_(False)


class Tools:
    """Where weights are, the device, and the networks that several metrics share."""

    def __init__(self, folders: list[Path], device: str, face_pack: str = "buffalo_l"):
        self.folders, self.device, self.face_pack = folders, torch.device(device), face_pack
        self.used: dict[str, list[str]] = {}  # metric -> the files it took

    def find(self, metric: str, *names: str, places: tuple[str, ...] = ("evaluation",)) -> Path:
        """The first of `names` (in the order of preference) in the `places` of the model folders."""
        searched = [folder / place for folder in self.folders for place in places]
        for name in names:
            for place in searched:
                if (place / name).exists():
                    self.used.setdefault(metric, []).append(str(place / name))
                    return place / name
        raise MissingWeights(f"{' or '.join(names)} is not in {', '.join(map(str, searched))} (docs/evaluation.md: where it comes from)")

    @cached_property
    def clip(self):
        from .clip_model import Clip
        return Clip(self.find("clip_model", "clip-vit-large-patch14", places=("evaluation", "clip_vision")), self.device)

    @cached_property
    def faces(self):
        from .faces import Faces
        return Faces(self)
