"""What a checkpoint file is, told from its header: every kind of file that people try gets one line."""
import json
import struct

import pytest

from portrait_atelier.headless import AtelierError
from portrait_atelier.headless.checkpoint import distilled, inspect, named, read_header

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.decoder.conv_in.weight", "cond_stage_model.transformer.text_model.x"
TO_K = ".1.transformer_blocks.0.attn2.to_k.weight"


def safetensors(path, shapes, metadata=None, data=None):
    """A file whose tensors are F16 and lie in a hole, but for `data`, {name: bytes}."""
    header, at, body = {"__metadata__": metadata} if metadata else {}, 0, {}
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        body[at] = (data or {}).get(name, b"")
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for place, values in body.items():
            file.seek(8 + len(text) + place)
            file.write(values)
        file.truncate(8 + len(text) + at)
    return path


def unet(context, block="input_blocks.1", channels=4):
    return {UNET + "input_blocks.0.0.weight": (320, channels, 3, 3), UNET + block + TO_K: (320, context), VAE: (1,), TEXT: (1,)}


SD15, SD21, SDXL = unet(768), unet(1024), unet(2048, "input_blocks.4")


@pytest.mark.parametrize("name, shapes, metadata, family, kind, steps", [
    ("dreamshaper_8.safetensors", SD15, None, "SD1.5", None, 0),
    ("Mein Modell ä.safetensors", SDXL, None, "SDXL", None, 0),
    ("v2-1_512-ema-pruned.safetensors", SD21, None, "SD2.1", None, 0),
    ("sd_turbo.safetensors", SD21, None, "SD2.1", "Turbo", 4),
    ("dreamshaper_8LCM.safetensors", SD15, None, "SD1.5", "LCM", 4),
    ("sdxl_lightning_8step.safetensors", SDXL, None, "SDXL", "Lightning", 8),
    ("realisticVisionV60B1_v51HyperVAE.safetensors", SD15, None, "SD1.5", "Hyper", 4),
    ("x.safetensors", SDXL, {"modelspec.title": "Painted DMD2"}, "SDXL", "DMD2", 4),
])
def test_families_and_distilled_models(tmp_path, name, shapes, metadata, family, kind, steps):
    found = inspect(safetensors(tmp_path / name, shapes, metadata))
    assert (found.name, found.family, found.kind, found.steps, found.v) == (name, family, kind, steps, False)
    assert kind is None or kind in found.why


@pytest.mark.parametrize("name", ["hyperrealism_v4", "HyperRealistic", "Hyper-Real", "superhyperion", "balcmania", "admdesign", "calcmix"])
def test_words_inside_of_other_words_say_nothing(name):
    assert distilled(name + ".safetensors", {}) == (None, 0, "")


@pytest.mark.parametrize("spread, v", [(0.02, False), (0.5, True)])
def test_what_an_sd21_checkpoint_predicts_is_read_from_one_tensor(tmp_path, spread, v):
    bias = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    values = struct.pack("<320e", *([spread, -spread] * 160))
    assert inspect(safetensors(tmp_path / "m.safetensors", SD21 | {bias: (320,)}, data={bias: values})).v is v


@pytest.mark.parametrize("shapes, metadata, name", [
    (SDXL | {"v_pred": (0,)}, None, "m"), (SDXL, {"modelspec.prediction_type": "v"}, "m"), (SD15, None, "noob_vpred-1"),
])
def test_v_prediction(tmp_path, shapes, metadata, name):
    assert inspect(safetensors(tmp_path / f"{name}.safetensors", shapes, metadata)).v


@pytest.mark.parametrize("shapes, told", [
    ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (4, 4)}, "a LoRA: it goes into models/loras"),
    ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": (4, 4)}, "a LoRA"),
    (unet(1280, "input_blocks.4"), "the SDXL refiner"), (unet(768, channels=9), "an inpainting checkpoint with 9 input channels"),
    (unet(768, channels=8), "8 input channels"), (unet(1024, channels=5), "a depth-to-image checkpoint"),
    ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (9, 3)}, "a Flux model"),
    ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (9, 3)}, "an SD3 model"),
    ({"model.diffusion_model.layers.0.attention.qkv.weight": (9, 3)}, "a transformer"),
    ({"down_blocks.0.resnets.0.conv1.weight": (3, 3)}, "layout of diffusers"), ({"input_blocks.0.0.weight": (320, 4, 3, 3)}, "a UNet alone"),
    ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "a ControlNet"), ({"decoder.conv_in.weight": (3, 3)}, "a VAE alone"),
    ({"text_model.encoder.layers.0.mlp.fc1.weight": (3, 3)}, "a text encoder"), ({"emb_params": (3, 768)}, "an embedding"),
    ({"image_proj.proj.weight": (3, 3)}, "an IP-Adapter"), ({"something": (3,)}, "its tensors are called something"), ({}, "called nothing"),
    ({name: shape for name, shape in SD15.items() if name != VAE}, "without VAE"),
    ({name: shape for name, shape in SD15.items() if name != TEXT}, "without text encoder"),
    (SD21 | {UNET + "label_emb.0.0.weight": (9, 9)}, "unCLIP"), (unet(99), "reads 99 values"),
])
def test_what_does_not_fit_is_named(tmp_path, shapes, told):
    path = safetensors(tmp_path / "given.safetensors", shapes)
    with pytest.raises(AtelierError, match="SD1.5, SD2.1 and SDXL") as error:
        inspect(path)
    assert str(error.value).startswith(f"--checkpoint {path} is ") and told in str(error.value)


@pytest.mark.parametrize("name, data, told", [
    ("a.ckpt", b"PK\x03\x04....", "pickle, which can run code"), ("a.safetensors", b"\x80\x02}q\0", "pickle"), ("a.pt", b"anything", "pickle"),
    ("a.safetensors", b"", "it is empty"), ("a.safetensors", b"no checkpoint", "damaged"), ("a.gguf", b"GGUF....", "GGUF"),
    ("a.safetensors", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ("a.safetensors", b"\n<!DOCTYPE html><html>", "a web page"), ("a.safetensors", b"\xff\xd8\xff" + bytes(90), "is a picture"),
    ("a.safetensors", (200).to_bytes(8, "little") + b'{"x": ', "cut off in its header"),
    ("a.safetensors", (10**15).to_bytes(8, "little") + b'{"x": ', "damaged"),
    ("a.safetensors", (6).to_bytes(8, "little") + b"{nojs}", "header cannot be read"),
    ("a.safetensors", (8).to_bytes(8, "little") + b'{"x": 5}', "header cannot be read"),
    ("a.safetensors", (60000).to_bytes(8, "little") + b'{"x": ' + b"[" * 59994, "header cannot be read"),
])
def test_files_that_are_no_safetensors(tmp_path, name, data, told):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(AtelierError) as error:
        read_header(path)
    assert str(error.value).startswith(f"--checkpoint {path} ") and told in str(error.value) and "\n" not in str(error.value)


def test_a_download_that_stopped_is_told_with_its_sizes(tmp_path):
    path = safetensors(tmp_path / "m.safetensors", {"x": (10**9,)})
    with path.open("r+b") as file:
        file.truncate(10**9)
    with pytest.raises(AtelierError, match=r"is cut off: it has 1\.00 of 2\.00 GB"):
        inspect(path)


def test_a_folder(tmp_path):
    with pytest.raises(AtelierError, match="is a folder"):
        read_header(tmp_path)


@pytest.mark.parametrize("name, metadata, family", [
    ("a.safetensors", {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, "SDXL"),
    ("a.safetensors", {"modelspec.architecture": "stable-diffusion-v1"}, "SD1.5"),
    ("a.safetensors", {"modelspec.architecture": "stable-diffusion-v2-768-v", "modelspec.prediction_type": "v"}, "SD2.1"),
    ("ponyDiffusionV6XL.safetensors", {}, "SDXL"), ("v1-5-pruned.safetensors", {}, "SD1.5"), ("sub/v2-1_512.safetensors", {}, "SD2.1"),
    ("dreamshaper_8.safetensors", {}, None),
])
def test_a_checkpoint_elsewhere_is_known_by_metadata_and_name(name, metadata, family):
    found = named(name, metadata)
    assert (found and found.family) == family
    if found:
        assert ("a guess" in found.why) == (not metadata) and found.v == ("modelspec.prediction_type" in metadata)


@pytest.mark.parametrize("name, metadata", [("sd_xl_refiner_1.0.safetensors", {}), ("a.safetensors", {"modelspec.architecture": "stable-diffusion-v1/lora"})])
def test_a_checkpoint_elsewhere_that_does_not_fit(name, metadata):
    with pytest.raises(AtelierError, match="no checkpoint for this"):
        named(name, metadata)
