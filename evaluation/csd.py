"""CSD: are two pictures of one style, whatever they show? (Somepalli and others, 2024)"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import normalize

from . import pictures
from .clip_model import MEAN, STD, cut
from .errors import EvaluationError
from .weights import fill, library

# What the published file holds beside tensors: the settings of its training, as plain values. numpy renamed its
# function for these.
SCALAR = np.float64(0).__reduce__()[0]
HARMLESS = [argparse.Namespace, np.dtype, SCALAR, (SCALAR, "numpy.core.multiarray.scalar"),
            (SCALAR, "numpy._core.multiarray.scalar"),
            *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")}]
HEAD = 64


class Csd:
    """Cosine of the style descriptors of generated picture and style picture, from -1 to 1."""

    name, needs, better = "csd", ("generated", "style"), "up"

    def __init__(self, tools):
        clip = library("piq.feature_extractors.clip")
        path = tools.find(self.name, "csd-vit-l/pytorch_model.bin")
        tensors, self.device = read(path), tools.device
        try:
            style = tensors["last_layer_style"]
            backbone = {key.removeprefix("backbone."): value for key, value in tensors.items()
                        if key.startswith("backbone.")}
            width, _, _, patch = backbone["conv1.weight"].shape
            grid = round((len(backbone["positional_embedding"]) - 1) ** .5)
            layers = len({key.split(".")[2] for key in backbone if key.startswith("transformer.resblocks.")})
        except (KeyError, ValueError, IndexError) as error:
            raise EvaluationError(f"{path} holds no style descriptors of a vision transformer: {error} is missing"
                                  ) from None
        self.side = grid * patch
        network = clip.VisionTransformer(self.side, patch, width, layers, max(1, width // HEAD), 1)
        network.proj = None  # CSD has its own, after it
        self.network, self.style = fill(network, backbone, path, self.device), style.float().to(self.device)

    def __call__(self, item: dict) -> float:
        one, other = (self.descriptor(pictures.load(item[side])) for side in self.needs)
        return float(one @ other)

    def descriptor(self, picture: Image.Image) -> torch.Tensor:
        """[D], of length 1."""
        x = normalize(cut(picture, self.side)[None].to(self.device), MEAN, STD)
        return F.normalize(self.network(x) @ self.style, dim=1)[0]


def read(path: Path) -> dict[str, torch.Tensor]:
    """The model's tensors of a training's checkpoint; the optimiser's stay on the disk. Raises EvaluationError."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors = found.get("model_state_dict", found)
        return {key.removeprefix("module."): value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
    except Exception as error:  # a damaged file makes the safe reader raise anything
        raise EvaluationError(f"{path} cannot be read as weights: {pictures.first_line(error)}") from None
