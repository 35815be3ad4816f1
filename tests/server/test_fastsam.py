"""FastSAM's nodes wired up in a real ComfyUI: files found while it runs, sockets of ComfyUI's own kinds, errors."""

import io
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from portrait_atelier.headless.errors import AtelierError

network = runpy.run_path(str(Path(__file__).parents[1] / "host" / "fastsam" / "network.py"))
RED, BLUE, candidate = network["RED"], network["BLUE"], network["candidate"]


@pytest.fixture(scope="module")
def workflow(server):
    folder = server.base / "models" / "fastsam"
    folder.mkdir(exist_ok=True)
    network["write_onnx"](folder / "colours.onnx", [candidate((0, 0, 100, 128), RED), candidate((90, 30, 160, 110), BLUE, score=.8)])
    pixels = np.zeros((128, 160, 3), np.uint8)
    pixels[24:112, 24:88, 0], pixels[40:104, 100:150, 2] = 255, 255
    Image.fromarray(pixels).save(server.base / "input" / "colours.png")
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "colours.png"}},
        "2": {"class_type": "AtelierFastSAMLoader", "inputs": {"file": "colours.onnx", "provider": "cpu"}},
        "3": {"class_type": "AtelierFastSAMSegment",
              "inputs": {"fastsam_model": ["2", 0], "image": ["1", 0], "size": 160, "conf": .4, "iou": .9, "max_det": 300, "mask_mode": "image"}},
        "4": {"class_type": "AtelierPickPoints", "inputs": {"image": ["1", 0], "points": "120,70 -40,70"}},
        "5": choose("points", positive=["4", 0], negative=["4", 1]),
        "6": choose("box", bboxes=["5", 1]),          # our boxes are boxes of ComfyUI's kind
        "7": {"class_type": "EmptyLatentImage", "inputs": {"width": 160, "height": 128, "batch_size": 1}},
        "8": {"class_type": "AtelierMaskToLatentGrid", "inputs": {"mask": ["6", 0], "latent": ["7", 0], "grow": 0, "feather": 0, "row": -1}},
        "9": {"class_type": "MaskToImage", "inputs": {"mask": ["8", 0]}},
        "10": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "mask"}},
    }


def choose(mode, **sockets):
    return {"class_type": "AtelierFastSAMMask",
            "inputs": {"fastsam_result": ["3", 0], "mode": mode, "text": "", "pick": "best", "amount": 1.0, "min_area": 0, "dedupe": 1.0,
                       "invert": False, "point_rule": "paint", "text_crop": "cutout", **sockets}}


def points(text):
    return {"4": {"class_type": "AtelierPickPoints", "inputs": {"image": ["1", 0], "points": text}}}


def test_points_are_checked_before_anything_runs(client, workflow):
    status, answer = client.json("/prompt", {"prompt": {**workflow, **points("40,70 120")}})
    assert status == 400
    error, = answer["node_errors"]["4"]["errors"]
    assert error["type"] == "custom_validation_failed" and "Point 2 is '120', which is no point" in error["details"]


@pytest.mark.quick
def test_a_point_becomes_a_box_becomes_a_mask_on_the_grid(client, workflow):
    first, = client.images(client.run(workflow))
    grid = np.asarray(Image.open(io.BytesIO(client.download(first))).convert("L"))
    expected = np.zeros((128, 160))
    expected[40:104, 100:150] = 255
    expected = expected.reshape(16, 8, 20, 8).mean((1, 3))
    assert grid.shape == (16, 20) and np.abs(grid - expected).max() < 20


@pytest.mark.parametrize("changes, words", [
    ({"5": choose("points")}, "mode points has no points. Connect 'positive'"),
    ({"4": {"class_type": "PrimitiveString", "inputs": {"value": "here"}}, "5": choose("points", positive=["4", 0])}, "is not a list of points: 'here'"),
    (points("40,70 120"), "Point 2 is '120', which is no point. Write x,y in pixels"),
    (points("160,70"), "'points' of Pick Points has a point at (160, 70), outside the picture of 160 x 128 pixels"),
    ({"5": choose("text")}, "mode text has no guidance. Connect CLIP Similarity Loader"),
])
def test_errors_reach_the_user(client, workflow, changes, words):
    with pytest.raises(AtelierError) as error:
        client.run({**workflow, **changes})
    assert words in str(error.value)
