"""What only many pictures have: how near they come to a set of others, and how much they differ among themselves."""

from __future__ import annotations

import statistics

import torch
from torchvision.models import inception_v3

from . import pictures
from .errors import Undefined
from .lpips import Lpips
from .weights import fill, library, read_tensors


class Fid:
    """Fréchet Inception Distance between a method's pictures and the items' style pictures; MMFS's column FID."""

    name, needs, better, whole = "fid", ("generated", "style"), "down", True

    def __init__(self, tools):
        module, self.device = library("torchmetrics.image.fid"), tools.device
        library("torch_fidelity")
        path = tools.find(self.name, "weights-inception-2015-12-05-6726825d.pth")
        read_tensors(path)  # refuses all but tensors: the library would read whatever a file holds
        # Scaled without antialias, as in the published code.
        distance = module.FrechetInceptionDistance(feature_extractor_weights_path=str(path), antialias=False)
        self.distance = distance.to(self.device)

    def __call__(self, items: list[dict]) -> float:
        return distance(self.distance, items, self.device)


class ArtFid:
    """(1 + LPIPS to the content) (1 + FID to the styles), with an Inception that knows art (Wright, Ommer, 2022)."""

    name, needs, better, whole = "art_fid", ("generated", "content", "style"), "down", True

    def __init__(self, tools):
        module, self.device = library("torchmetrics.image.fid"), tools.device
        path = tools.find(self.name, "art_inception.pth")
        self.distance = module.FrechetInceptionDistance(feature=ArtInception(path)).to(self.device)
        self.lpips = Lpips(tools, metric=self.name)

    def __call__(self, items: list[dict]) -> float:
        content = statistics.fmean(map(self.lpips, items))
        return (1 + content) * (1 + distance(self.distance, items, self.device))


class Diversity:
    """LPIPS between two results of one content, in the manifest's order; MMFS's column LPIPS (more is better)."""

    name, needs, better, whole = "diversity", ("generated", "content"), "up", True

    def __init__(self, tools, network: str = "alex"):
        self.lpips = Lpips(tools, network, metric=self.name)

    def __call__(self, items: list[dict]) -> float:
        last, found = {}, []
        for item in items:
            if item["content"] in last:
                found.append(self.lpips.between(item["generated"], last[item["content"]]))
            last[item["content"]] = item["generated"]
        if not found:
            raise Undefined("no content has two results")
        return statistics.fmean(found)


class ArtInception(torch.nn.Module):
    """Pictures [B, 3, H, W] from 0 to 255 -> [B, 2048]: torchvision's Inception v3 without its classifiers."""

    num_features = 2048

    def __init__(self, path):
        super().__init__()
        with torch.device("meta"):
            network = inception_v3(weights=None, aux_logits=False, init_weights=False)
            network.fc = torch.nn.Identity()
        tensors = {key: value for key, value in read_tensors(path).items() if not key.startswith(("fc", "AuxLogits"))}
        self.network = fill(network, tensors, path, "cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.float() / 255)


def distance(metric, items: list[dict], device) -> float:
    """The library's FID between the generated pictures and the different styles. Raises Undefined for less than two."""
    metric.reset()
    for real, side in ((True, "style"), (False, "generated")):
        paths = list(dict.fromkeys(item[side] for item in items))
        if len(paths) < 2:
            raise Undefined(f"there are fewer than two {side} pictures")
        for path in paths:
            metric.update((pictures.as_batch(pictures.load(path), device) * 255).round().byte(), real=real)
    return float(metric.compute())
