"""LPIPS: how far apart two pictures look (Zhang and others, 2018)."""

from __future__ import annotations

import torch
from torchvision import models

from . import pictures
from .errors import EvaluationError
from .weights import fill, read_tensors

# The network's published weights, and the layers of `features` after which activations are compared.
NETWORKS = {
    "alex": (models.alexnet, "alexnet-owt-7be5be79.pth", (1, 4, 7, 9, 11)),
    "vgg": (models.vgg16, "vgg16-397923af.pth", (3, 8, 15, 22, 29)),
}
# Zhang's scaling of pictures from -1 to 1.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips:
    """LPIPS 0.1 between the generated picture and its content picture, 0 for equal ones; ZePo's column LPIPS."""

    name, needs, better = "lpips", ("generated", "content"), "down"

    def __init__(self, tools, network: str = "alex"):
        make, file, self.layers = NETWORKS[network]
        heads, backbone = tools.find(self.name, f"lpips_{network}.pth"), tools.find(self.name, file)
        self.device = tools.device
        self.features = trunk(make, backbone, self.device)
        tensors, names = read_tensors(heads), [f"lin{number}.model.1.weight" for number in range(len(self.layers))]
        if not set(names) <= set(tensors):
            raise EvaluationError(f"{heads} holds no LPIPS 0.1 weights: {names[0]} ... {names[-1]} are looked for")
        self.weights = [tensors[name].float().to(self.device) for name in names]

    def __call__(self, item: dict) -> float:
        generated = pictures.load(item["generated"])
        content = pictures.like(pictures.load(item["content"]), generated)
        return float(self.distance(pictures.as_batch(generated, self.device), pictures.as_batch(content, self.device)))

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Pictures [1, 3, H, W] from 0 to 1 -> distance: sum over layers of mean over places of w * (a' - b')^2,
        a' and b' being activations of length 1 over their channels."""
        total = 0.0
        for x, y, weight in zip(self.activations(a), self.activations(b), self.weights):
            total = total + torch.nn.functional.conv2d((x - y).square(), weight).mean()
        return total

    def activations(self, x: torch.Tensor):
        x = (x * 2 - 1 - x.new_tensor(SHIFT).view(3, 1, 1)) / x.new_tensor(SCALE).view(3, 1, 1)
        for y in at_layers(self.features, x, self.layers):
            yield y / (y.norm(dim=1, keepdim=True) + 1e-10)


def trunk(make, path, device) -> torch.nn.Module:
    """The convolutions of a torchvision network with the weights of a file that has its classifier too."""
    with torch.device("meta"):
        features = make(weights=None).features
    tensors = {key.removeprefix("features."): value for key, value in read_tensors(path).items() if key.startswith("features.")}
    return fill(features, tensors, path, device)


def at_layers(features, x: torch.Tensor, layers: tuple[int, ...]):
    """The outputs of these layers, which must be in order; nothing after the last one is computed."""
    for number, layer in enumerate(features):
        x = layer(x)
        if number in layers:
            yield x
        if number == layers[-1]:
            return
