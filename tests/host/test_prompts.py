"""Prompts of another text encoder and prompts with NaN: every node of ours that takes one says so, by socket."""

import pytest
import torch

from portrait_atelier.nodes.consistency_feature_extract import ConsistencyFeatureExtract
from portrait_atelier.nodes.decoupled_cfg import DecoupledCFG
from portrait_atelier.nodes.decoupled_cfg_guider import DecoupledCFGGuider
from portrait_atelier.nodes.style_lora_train import StyleLoRATrain


@pytest.fixture(scope="module")
def path(desk):
    with torch.inference_mode():
        return desk.source(steps=2)


@pytest.fixture(scope="module")
def nano(make_studio):
    return make_studio("nano")


def wide(prompt):
    return [[prompt[0][0].repeat(1, 1, 12), prompt[0][1]]]


def nan(prompt):
    return [[prompt[0][0] * float("nan"), prompt[0][1]]]


def pooled_nan(prompt):
    return [[prompt[0][0], {**prompt[0][1], "pooled_output": torch.full((1, 1280), float("nan"))}]]


@pytest.mark.parametrize("bad, message", [
    (wide, r"was written by another text encoder: it is 768 wide, but this TinySD15 model reads 64\. Encode it with the CLIP of this model's checkpoint"),
    (nan, "holds NaN or infinite values"), (pooled_nan, "holds NaN or infinite values")], ids=["width", "nan", "pooled"])
def test_every_socket(desk, nano, path, tensor, bad, message):
    def refused(where, call):
        with pytest.raises(ValueError, match=f"^{where} {message}"):
            call()

    good, latent = nano.positive, tensor(1, 4, 8, 8, seed=3)
    refused("'positive' of Consistency Feature Extract", lambda: nano.features(latent, positive=bad(good)))
    refused("'negative' of Consistency Feature Extract", lambda: ConsistencyFeatureExtract.execute(nano.model, {"samples": latent}, good, bad(good)))
    refused("'empty_prompt' of Source Trajectory", lambda: desk.source(prompt=bad(good), mode="forward"))
    refused("'negative' of LoRA Cross-Injection", lambda: desk.inject(path, desk.branch(), negative=bad(good)))
    refused("'prompt of style 2' of LoRA Cross-Injection", lambda: desk.inject(path, desk.branch(bad(good), desk.branch())))
    refused("'base_prompt' of LoRA Cross-Injection", lambda: desk.inject(path, desk.branch(), background="base", base_prompt=bad(good)))
    for place, name in enumerate(("positive", "negative", "null")):
        prompts = [bad(good) if place == number else good for number in range(3)]
        refused(f"'{name}' of Decoupled CFG Guider", lambda: DecoupledCFGGuider.execute(nano.model, *prompts))
    refused("'caption' of Style LoRA Train", lambda: StyleLoRATrain.execute(desk.model, None, torch.rand(1, 64, 64, 3), bad(good)))


@pytest.mark.parametrize("name", ["positive", "negative"])
def test_decoupled_guidance_behind_a_sampler_of_comfyui(nano, tensor, name):
    model = DecoupledCFG.execute(nano.model)[0]
    with pytest.raises(ValueError, match=f"^The prompt '{name}' of the sampler behind Decoupled CFG holds NaN"):
        nano.sample(model, tensor(1, 4, 8, 8, seed=3), **{name: nan(nano.positive)})


@pytest.mark.parametrize("pooled, message", [(None, "there is none"), (torch.ones(1, 768), "there is one 768 wide")])
def test_the_pooled_text_of_sdxl(sdxl, tensor, pooled, message):
    prompt = [[sdxl.positive[0][0], {} if pooled is None else {"pooled_output": pooled}]]
    with pytest.raises(ValueError, match=f"'positive' of Consistency Feature Extract .* this TinySDXL model reads a pooled text 1280 wide, and {message}"):
        sdxl.features(tensor(1, 4, 8, 8, seed=3), positive=prompt)


def test_no_prompt(nano, tensor):
    with pytest.raises(ValueError, match="'null' of Decoupled CFG Guider holds no prompt. Connect a CLIP Text Encode"):
        DecoupledCFGGuider.execute(nano.model, nano.positive, nano.negative, [])
