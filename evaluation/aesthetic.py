"""LAION's aesthetic score: how much people like pictures like this one."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from . import pictures
from .errors import EvaluationError
from .weights import read_tensors


class Aesthetic:
    """A linear function of CLIP ViT-L/14's unit embedding, about 1 to 10; FastFace's column AE.

    The file is one linear layer, or several with nothing between them but training's dropout. The first name is the one
    in FastFace's published code, the second the one its text cites; their values differ.
    """

    name, needs, better = "aesthetic", ("generated",), "up"
    files = ("ava+logos-l14-linearMSE.pth", "sa_0_4_vit_l_14_linear.pth")

    def __init__(self, tools):
        path = tools.find(self.name, *self.files)
        self.clip = tools.clip
        self.layers = linear_layers(read_tensors(path), self.clip.width, path, tools.device)

    def __call__(self, item: dict) -> float:
        x = self.clip.image(pictures.load(item["generated"]))
        for weight, bias in self.layers:
            x = F.linear(x, weight, bias)
        return float(x)


def linear_layers(tensors: dict[str, torch.Tensor], width: int, path: Path, device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(weight, bias) of each layer in order, from `width` values to one. Raises EvaluationError."""
    layers, inputs = [], width
    for prefix in sorted((key.removesuffix("weight") for key in tensors if key.endswith("weight")), key=layer_number):
        weight, bias = tensors[prefix + "weight"].float(), tensors.get(prefix + "bias", torch.zeros(1)).float()
        if weight.ndim != 2 or weight.shape[1] != inputs:
            raise EvaluationError(f"{path} has no linear layers on {width} values: {prefix}weight has the shape {list(weight.shape)}")
        inputs = weight.shape[0]
        layers.append((weight.to(device), bias.to(device)))
    if inputs != 1:
        raise EvaluationError(f"{path} has no linear layers to one value: the last one ends in {inputs} values")
    return layers


def layer_number(prefix: str) -> int:
    digits = "".join(filter(str.isdigit, prefix))
    return int(digits) if digits else 0
