"""Style loss: do two pictures have the same textures? (Gatys, Ecker, Bethge, 2016)"""

from __future__ import annotations

import torch
from torchvision import models

from . import pictures
from .weights import fill, read_tensors

LAYERS = (1, 6, 11, 20, 29)  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 of VGG19
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet: what torchvision's weights were trained with


class GramStyle:
    """Gatys's style loss between the generated picture and its style picture, 0 for equal ones; ZePo's column Style."""

    name, needs, better = "style_loss", ("generated", "style"), "down"

    def __init__(self, tools):
        self.device = tools.device
        path = tools.find(self.name, "vgg19-dcbb9e9d.pth")
        with torch.device("meta"):
            features = models.vgg19(weights=None).features
        tensors = {key.removeprefix("features."): value for key, value in read_tensors(path).items() if key.startswith("features.")}
        self.features = fill(features, tensors, path, self.device)

    def __call__(self, item: dict) -> float:
        generated = pictures.load(item["generated"])
        style = pictures.like(pictures.load(item["style"]), generated)
        return float(style_loss(self.activations(generated), self.activations(style)))

    def activations(self, picture) -> list[torch.Tensor]:
        x = pictures.as_batch(picture, self.device)
        x = (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)
        found = []
        for number, layer in enumerate(self.features[:LAYERS[-1] + 1]):
            x = layer(x)
            if number in LAYERS:
                found.append(x)
        return found


def gram(x: torch.Tensor) -> torch.Tensor:
    """Gatys's equation (3): products of channels summed over the places of [1, N, H, W] -> [N, N], here over M = H W."""
    x = x.flatten(2)[0]
    return x @ x.T / x.shape[1]


def style_loss(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    """Gatys's equations (4) and (5), each layer weighing the same: mean of sum (G - A)^2 / (4 N^2 M^2)."""
    terms = [(gram(x) - gram(y)).square().sum() / (4 * x.shape[1] ** 2) for x, y in zip(a, b)]
    return torch.stack(terms).mean()
