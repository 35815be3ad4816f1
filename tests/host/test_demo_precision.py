"""The demo in half precision: ComfyUI's flags decide, as for a checkpoint, and every technique stays close to float32.

The CPU casts half-precision weights up; computing in half precision, as a GPU does, is asked for with the model's own switch.
"""

import comfy.cli_args
import pytest
import torch

from portrait_atelier.demo import checkpoint
from portrait_atelier.demo.measure import held_out_pairs
from portrait_atelier.demo.measure_faces import FaceStudio, dcg, held_out_people
from portrait_atelier.host import demo_model
from portrait_atelier.nodes.demo_model_loader import DemoModelLoader
from portrait_atelier.nodes.style_lora_train import StyleLoRATrain

# What computing costs, and what weights rounded for it cost: root mean square, where a colour runs from 0 to 1.
HALF = {"bf16": (torch.bfloat16, 0.02), "fp16": (torch.float16, 0.002)}
FLAGS = {"fp16_unet": (torch.float16, 0.001), "bf16_unet": (torch.bfloat16, 0.01), "fp8_e4m3fn_unet": (torch.float8_e4m3fn, 0.1),
         "fp8_e5m2_unet": (torch.float8_e5m2, 0.15), "fp32_unet": (torch.float32, 0.0), "fp64_unet": (torch.float64, 1e-5)}


@pytest.fixture(scope="module")
def pairs():
    return held_out_pairs(2)


@pytest.fixture(scope="module")
def identity():
    with torch.inference_mode():
        studio = FaceStudio()
        return studio.identities(held_out_people(1))[0]


@pytest.fixture
def flag(monkeypatch):
    return lambda name: monkeypatch.setattr(comfy.cli_args.args, name, True)


def techniques(studio, pairs, identity) -> dict[str, torch.Tensor]:
    """Pictures [n, 3, 256, 256] of the pack's techniques on the studio's model."""
    with_face = studio.model_of(identity, guidance=dcg())
    return {"plain": studio.draw("portrait, photo", 2), "SEAC": studio.stylize(pairs.contents, pairs.references),
            "Face Adapter, Decoupled CFG": studio.draw_styles(with_face, ("photo", "ink"), 0),
            "Scale-Power Attention": studio.draw_styles(studio.model_of(identity, maps="AM1"), ("photo", "ink"), 0),
            "Scheduled-Softmax Attention": studio.draw_styles(studio.model_of(identity, maps="AM2"), ("photo", "ink"), 0)}


def deviation(pictures, others) -> float:
    """Root mean square of the difference."""
    return float((pictures - others).square().mean().sqrt())


@pytest.fixture(scope="module")
def exact(pairs, identity):
    with torch.inference_mode():
        return techniques(FaceStudio(), pairs, identity)


@pytest.mark.parametrize("name", FLAGS)
def test_weights_follow_the_flags(flag, name, exact):
    """Weights are bytes times a step in the file, float32 in memory, and rounded where a flag asks for it."""
    kind, most = FLAGS[name]
    flag(name)
    studio = FaceStudio()
    inner = studio.model.model
    assert {parameter.dtype for parameter in inner.diffusion_model.parameters()} == {kind}
    assert inner.get_dtype_inference() == (torch.float64 if kind == torch.float64 else torch.float32)
    away = deviation(studio.draw("portrait, photo", 2), exact["plain"])
    assert away <= most and (away > 0) == (kind != torch.float32)


def test_without_a_flag_the_cpu_computes_in_float32():
    inner = FaceStudio().model.model
    assert {parameter.dtype for parameter in inner.diffusion_model.parameters()} == {torch.float32} and inner.manual_cast_dtype is None


@pytest.mark.parametrize("kind", HALF)
def test_computing_in_half_precision(kind, pairs, identity, exact):
    dtype, most = HALF[kind]
    studio = FaceStudio()
    studio.model.set_model_compute_dtype(dtype)
    for name, pictures in techniques(studio, pairs, identity).items():
        assert torch.isfinite(pictures).all() and 0 < deviation(pictures, exact[name]) < most, name


@pytest.mark.parametrize("name, dtype, most", [("fp16_vae", torch.float16, 0.001), ("bf16_vae", torch.bfloat16, 0.01), ("fp32_vae", torch.float32, 0.0),
                                               ("cpu", torch.float32, 0.0)])
def test_the_vae_follows_the_flags(flag, pairs, name, dtype, most):
    world, pictures = checkpoint.load(), pairs.contents.movedim(1, -1)
    plain, latents = demo_model.vae(world.codec), world.codec.encode(pairs.contents * 2 - 1)
    flag(name)
    vae = demo_model.vae(world.codec)
    assert {parameter.dtype for parameter in vae.first_stage_model.parameters()} == {dtype} == {vae.vae_dtype}
    assert {parameter.dtype for parameter in world.codec.parameters()} == {torch.float32}, "others use it too"
    assert deviation(vae.encode(pictures), latents) <= most * latents.abs().max() and deviation(vae.decode(latents), plain.decode(latents)) <= most


def test_training_on_half_precision_weights(flag):
    flag("bf16_unet")
    model, clip, vae = DemoModelLoader.execute().result
    caption = clip.encode_from_tokens_scheduled(clip.tokenize("portrait, ink"))
    lora, losses = StyleLoRATrain.execute(model, vae, torch.rand(1, 64, 64, 3), caption, rank=2, steps=2, resolution=64).result
    assert all(torch.isfinite(tensor).all() for tensor in lora.values()) and len(losses["loss"]) == 2


@pytest.mark.parametrize("height, width", [(1, 512), (512, 1), (15, 15)])
def test_pictures_smaller_than_a_cell(height, width):
    vae = DemoModelLoader.execute()[2]
    for encode in (vae.encode, vae.encode_tiled):
        with pytest.raises(ValueError, match=f"has {width} x {height} pixels, but the demo's VAE needs 16 x 16 at least.*Upscale Image"):
            encode(torch.rand(1, height, width, 3))


def test_grey_pictures():
    vae, grey = DemoModelLoader.execute()[2], torch.rand(1, 32, 48, 1)
    colour = vae.encode(grey.expand(-1, -1, -1, 3))
    assert torch.equal(vae.encode(grey), colour) and torch.equal(vae.encode(torch.cat([grey, torch.ones_like(grey)], -1)), colour)
