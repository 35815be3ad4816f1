"""LPIPS: how far apart two pictures look (Zhang and others, 2018)."""

from __future__ import annotations

import torch

from . import pictures
from .weights import fill, library, read_tensors

FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


class Lpips:
    """LPIPS 0.1 between the generated picture and its content picture, 0 for equal ones; ZePo's column LPIPS."""

    name, needs, better = "lpips", ("generated", "content"), "down"

    def __init__(self, tools, network: str = "alex", metric: str = name):
        module, self.device = library("torchmetrics.functional.image.lpips"), tools.device
        path = tools.find(metric, FILES[network])
        # Its public class reads the convolutions from the network, and not safely; the heads come with the package.
        self.network = module._NoTrainLpips(net=network, pnet_rand=True).to(self.device)
        tensors, features = read_tensors(path), self.network.net
        # of the file: without its classifier
        names = {key: "features." + key.split(".", 1)[1] for key in features.state_dict()}
        fill(features, {key: tensors[name] for key, name in names.items() if name in tensors}, path, self.device)

    def __call__(self, item: dict) -> float:
        return self.between(item["generated"], item["content"])

    def between(self, path, other) -> float:
        """The distance of two pictures, at the size of the first."""
        picture = pictures.load(path)
        batches = [pictures.as_batch(p, self.device) for p in (picture, pictures.like(pictures.load(other), picture))]
        with torch.inference_mode():
            return float(self.network(*batches, normalize=True))
