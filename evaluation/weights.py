"""Weights are looked for in folders and never downloaded."""

from __future__ import annotations

import importlib
import os
import sys
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

from .errors import EvaluationError, MissingWeights
from .pictures import first_line

ROOT = Path(__file__).resolve().parents[1]
# Where files come from; docs/evaluation.md has the licences.
PAGES = {
    "clip-vit-large-patch14": "https://huggingface.co/openai/clip-vit-large-patch14",
    "styleid": "https://huggingface.co/kwanY/styleid",
    "ava+logos-l14-linearMSE.pth": "https://github.com/christophschuhmann/improved-aesthetic-predictor",
    "alexnet-owt-7be5be79.pth": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg16-397923af.pth": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "vgg19-dcbb9e9d.pth": "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
    "resnet50_clip.openai": "https://huggingface.co/timm/resnet50_clip.openai",
    "dino_vitbase8_pretrain.pth": "https://github.com/facebookresearch/dino",
    "csd-vit-l": "https://huggingface.co/tomg-group-umd/CSD-ViT-L",
    "imagereward": "https://huggingface.co/THUDM/ImageReward, and vocab.txt from https://huggingface.co/google-bert/bert-base-uncased",
    "weights-inception-2015-12-05-6726825d.pth": "https://github.com/toshas/torch-fidelity/releases",
    "art_inception.pth": "https://huggingface.co/matthias-wright/art_inception",
    "buffalo_l": "https://github.com/deepinsight/insightface/releases",
}
PACKAGES = ROOT / "requirements-evaluate.txt"


def model_folders(given: list[Path]) -> list[Path]:
    """The folders called `models`: those given, else ComfyUI's and the one of `.atelier/`."""
    if given:
        return given
    comfyui = os.environ.get("COMFYUI_PATH")
    return ([Path(comfyui) / "models"] if comfyui else []) + [ROOT / ".atelier" / "base" / "models"]


def library(name: str):
    """A module of the packages in requirements-evaluate.txt. Raises MissingWeights, which says how to get them."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingWeights(f"the package {name.split('.')[0]} cannot be imported ({first_line(error)}): python3 atelier.py evaluate "
                             f"--install, or for a ComfyUI of yours {sys.executable} -m pip install -r {PACKAGES}") from None


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
        page = PAGES.get(Path(names[0]).parts[0], "docs/evaluation.md says where it comes from")
        raise MissingWeights(f"{' or '.join(names)} is not in {', '.join(map(str, searched))}; get it from {page}")

    @cached_property
    def clip(self):
        from .clip_model import Clip
        return Clip(self.find("clip_model", "clip-vit-large-patch14", places=("evaluation", "clip_vision")), self.device)

    @cached_property
    def faces(self):
        from .faces import Faces
        return Faces(self)
