"""The guidance nodes wired up in a real ComfyUI, on the demo model: its sockets, its validation, its errors."""

import io

import numpy as np
import pytest
from PIL import Image

from portrait_atelier.headless.errors import AtelierError

MODEL = {
    "1": {"class_type": "AtelierDemoModelLoader", "inputs": {}},
    "2": {"class_type": "AtelierFewStepPreset", "inputs": {"model": ["1", 0], "base": "LCM", "steps": 4, "denoise": 1.0}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "head, ink style"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
    "90": {"class_type": "VAEDecode", "inputs": {"samples": ["80", 0], "vae": ["1", 2]}},
    "91": {"class_type": "SaveImage", "inputs": {"images": ["90", 0], "filename_prefix": "guided"}},
}
GUIDER = {
    **MODEL,
    "10": {"class_type": "AtelierDecoupledCFGGuider",
           "inputs": {"model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "formulation": "DCG_2", "alpha": ["2", 4], "beta": ["2", 5],
                      "rescale": 0.75, "rescale_steps": "guided", "routing": "shared"}},
    "11": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
    "80": {"class_type": "SamplerCustomAdvanced",
           "inputs": {"noise": ["11", 0], "guider": ["10", 0], "sampler": ["2", 1], "sigmas": ["2", 2], "latent_image": ["5", 0]}},
}
PATCH = {
    **MODEL,
    "10": {"class_type": "AtelierDecoupledCFG",
           "inputs": {"model": ["2", 0], "formulation": "DCG_2", "alpha": "1, 1.5, 1.5, 1", "beta": "1, 3, 3, 1", "rescale": 0.75,
                      "rescale_steps": "guided", "routing": "shared"}},
    "80": {"class_type": "KSampler",
           "inputs": {"model": ["10", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0], "seed": 5, "steps": ["2", 6],
                      "cfg": ["2", 3], "sampler_name": "lcm", "scheduler": "simple", "denoise": 1.0}},
}


def picture(client, workflow):
    first, = client.images(client.run(workflow))
    return np.asarray(Image.open(io.BytesIO(client.download(first))))


def changed(workflow, node, **inputs):
    return {**workflow, node: {**workflow[node], "inputs": {**workflow[node]["inputs"], **inputs}}}


def test_the_guider_and_the_patch_make_one_picture(client):
    guided = picture(client, GUIDER)
    assert (picture(client, PATCH) == guided).all() and guided.std() > 5
    assert (picture(client, changed(PATCH, "10", alpha="1", beta="1")) != guided).any()


@pytest.mark.parametrize("wrong, words", [
    (changed(PATCH, "10", beta="1, three"), "'beta' of Decoupled CFG is '1, three', where 'three' is not a number"),
    ({**changed(PATCH, "80", model=["20", 0]), "20": {"class_type": "RescaleCFG", "inputs": {"model": ["10", 0], "multiplier": 0.7}}},
     "another guidance node ('RescaleCFG'"),
])
def test_errors_reach_the_user(client, wrong, words):
    with pytest.raises(AtelierError) as error:
        client.run(wrong)
    assert words in str(error.value)
