"""Tiny random models with the module tree of SD1.5, SD2.1 and SDXL, on ComfyUI's own UNet class."""

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import comfy_extras.nodes_model_advanced
import pytest
import torch

from portrait_atelier.nodes.consistency_feature_extract import ConsistencyFeatureExtract
from portrait_atelier.nodes.seac_patch import SEACPatch
from portrait_atelier.nodes.token_merge import TokenMerge


class TinySD15(comfy.supported_models.SD15):
    unet_config = {}
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}


class TinySD21(comfy.supported_models.SD20):
    unet_config = {}
    unet_extra_config = {"num_heads": -1, "num_head_channels": 16, "attn_precision": torch.float32}


class TinySDXL(comfy.supported_models.SDXL):
    unet_config = {}
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}


COMMON = dict(image_size=32, in_channels=4, out_channels=4, model_channels=32, use_spatial_transformer=True, context_dim=64,
              legacy=False, dtype=torch.float32, use_temporal_attention=False, use_temporal_resblock=False)
SD = dict(COMMON, channel_mult=[1, 2, 4, 4], num_res_blocks=[2] * 4, transformer_depth=[1] * 6 + [0] * 2,
          transformer_depth_middle=1, transformer_depth_output=[1] * 9 + [0] * 3, adm_in_channels=None)
SPECS = {
    "sd15": (TinySD15, dict(SD, use_linear_in_transformer=False)),
    "sd21": (TinySD21, dict(SD, use_linear_in_transformer=True)),
    "sdxl": (TinySDXL, dict(COMMON, channel_mult=[1, 2, 4], num_res_blocks=[2] * 3, transformer_depth=[0, 0, 2, 2, 10, 10],
                            transformer_depth_middle=10, transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
                            use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=2816)),
}


def build(family: str, seed: int = 0):
    config, spec = SPECS[family]
    model = config(dict(spec)).get_model({}, device=torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.diffusion_model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.fill_(float(name.endswith("weight")))
        parameter.requires_grad_(False)
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Studio:
    """A model with its prompts: what the ComfyUI graph around our nodes does."""

    def __init__(self, model):
        self.model = model
        pooled = {"pooled_output": random(1, 1280, seed=9)}
        self.positive = [[random(1, 77, 64, seed=1), dict(pooled)]]
        self.negative = [[random(1, 77, 64, seed=2), dict(pooled)]]

    def features(self, latent, model=None, negative=True, **options):
        options = {"positive": self.positive, "negative": self.negative if negative else None, **options}
        return ConsistencyFeatureExtract.execute(model or self.model, {"samples": latent}, **options)[0]

    def merge(self, features, **options):
        return TokenMerge.execute(features, **options)[0]

    def patch(self, source, reference, model=None, **options):
        return SEACPatch.execute(model or self.model, reference, source, **options)[0]

    def sample(self, model, latent, steps=2, cfg=2.0, denoise=0.5, sampler="lcm", seed=7, positive=None, negative=None, scheduler="simple"):
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, positive or self.positive,
                                   negative or self.negative, latent, denoise=denoise, seed=seed, disable_pbar=True)


def lcm(model):
    return comfy_extras.nodes_model_advanced.ModelSamplingDiscrete().patch(model, "lcm", False)[0]


@pytest.fixture(scope="session")
def build_model():
    return build


@pytest.fixture(scope="session")
def make_studio():
    return lambda family, seed=0: Studio(lcm(build(family, seed)))


@pytest.fixture(scope="session")
def sd15(make_studio):
    return make_studio("sd15")


@pytest.fixture(scope="session")
def sd21(make_studio):
    return make_studio("sd21")


@pytest.fixture(scope="session")
def sdxl(make_studio):
    return make_studio("sdxl")


@pytest.fixture(params=["sd15", "sd21", "sdxl"])
def studio(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def inference():
    """As ComfyUI executes nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tensor():
    """Seeded random tensors."""
    return random


def difference(a, b) -> float:
    """max|a - b| / max|b|, the measure of every tolerance here."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.fixture(scope="session")
def apart():
    return difference
