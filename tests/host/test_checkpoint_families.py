"""The command's reading of a checkpoint's header agrees with ComfyUI's own detection, on the real layouts without their weights."""
import json

import comfy.model_detection
import comfy.ops
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from portrait_atelier.headless import AtelierError
from portrait_atelier.headless.checkpoint import inspect
from portrait_atelier.headless.families import FACE_SAMPLERS
from portrait_atelier.host import few_step

UNET = "model.diffusion_model."
SD = dict(image_size=32, in_channels=4, out_channels=4, model_channels=320, channel_mult=[1, 2, 4, 4], num_res_blocks=[2] * 4,
          transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1, transformer_depth_output=[1] * 9 + [0] * 3,
          use_spatial_transformer=True, context_dim=768, num_heads=8, use_linear_in_transformer=False, adm_in_channels=None, legacy=False,
          use_temporal_attention=False, use_temporal_resblock=False)
SD2 = {**SD, "context_dim": 1024, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64}
XL = {**SD2, "channel_mult": [1, 2, 4], "num_res_blocks": [2] * 3, "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
      "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "num_classes": "sequential", "adm_in_channels": 2816}
REFINER = {**XL, "model_channels": 384, "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4, "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0],
           "transformer_depth_middle": 4, "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0], "context_dim": 1280, "adm_in_channels": 2560}


@pytest.mark.parametrize("config, theirs, ours", [
    (SD, "SD15", "SD1.5"), (SD2, "SD20", "SD2.1"), (XL, "SDXL", "SDXL"), (REFINER, "SDXLRefiner", "the SDXL refiner"),
    ({**SD, "in_channels": 9}, "SD15", "an inpainting checkpoint"), ({**XL, "in_channels": 9}, "SDXL", "an inpainting checkpoint"),
])
def test_families(tmp_path, config, theirs, ours):
    with torch.device("meta"):
        weights = UNetModel(**config, dtype=torch.float16, device="meta", operations=comfy.ops.disable_weight_init).state_dict()
    weights = {UNET + name: value for name, value in weights.items()}
    assert type(comfy.model_detection.model_config_from_unet(weights, UNET)).__name__ == theirs
    shapes = {name: list(value.shape) for name, value in weights.items()} | {"first_stage_model.x": [1], "cond_stage_model.x": [1]}
    text = json.dumps({name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    try:
        assert inspect(path).family == ours
    except AtelierError as error:
        assert f"is {ours}" in str(error)


def test_faces_are_sampled_as_few_step_preset_samples():
    assert {kind: preset.sampler for kind, preset in few_step.PRESETS.items()} == FACE_SAMPLERS
    assert [kind for kind, preset in few_step.PRESETS.items() if preset.lcm] == ["LCM"]
