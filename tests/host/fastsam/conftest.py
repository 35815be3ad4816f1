"""The generated network in ComfyUI's folder, and a picture that it has segmented."""

import os

import folder_paths
import pytest
import torch

from portrait_atelier.nodes.fastsam_loader import FastSAMLoader
from portrait_atelier.nodes.fastsam_mask import FastSAMMask
from portrait_atelier.nodes.fastsam_segment import FastSAMSegment

from .network import ALL, BLUE, GREEN, RED, candidate, write_onnx


@pytest.fixture(scope="session")
def folder():
    path = folder_paths.get_folder_paths("fastsam")[0]
    os.makedirs(path, exist_ok=True)
    return path


@pytest.fixture
def network(folder, request):
    """network(rows, ...): writes an ONNX file into models/fastsam and loads it with the node."""
    names = []

    def build(rows, provider="cpu", **options):
        names.append(f"{request.node.name[:40].replace('/', '_')}{len(names)}.onnx")
        write_onnx(os.path.join(folder, names[-1]), rows, **options)
        return FastSAMLoader.execute(names[-1], provider)[0]

    yield build
    for name in names:
        os.remove(os.path.join(folder, name))


def picture(height, width, *shapes):
    """Black, with rectangles (colour, y1, y2, x1, x2) of a pure colour: [1, height, width, 3]."""
    image = torch.zeros(1, height, width, 3)
    for colour, y1, y2, x1, x2 in shapes:
        image[0, y1:y2, x1:x2, colour] = 1
    return image


@pytest.fixture
def scene(network):
    """A result of 128 x 192 pixels, without padding: a large red rectangle, a green one in it, a blue one beside it, and all of it."""
    image = picture(128, 192, (RED, 16, 112, 16, 96), (GREEN, 32, 64, 32, 64), (BLUE, 40, 104, 120, 184))
    image[0, 32:64, 32:64, RED] = 1
    model = network([candidate((10, 10, 100, 120), RED, score=.9), candidate((30, 28, 66, 68), GREEN, score=.8),
                     candidate((110, 30, 190, 110), BLUE, score=.7), candidate((0, 0, 192, 128), ALL, score=.6),
                     candidate((60, 70, 90, 90), RED, score=.2)])
    return FastSAMSegment.execute(model, image, size=192)[0]


def select(result, **options):
    return FastSAMMask.execute(result, **options).result
