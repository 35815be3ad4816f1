"""What the distilled models of FastFace's experiments are sampled with."""

from dataclasses import dataclass

import comfy.samplers
import comfy_extras.nodes_custom_sampler
import comfy_extras.nodes_model_advanced
import torch

from .kit.sites import attention_layers


@dataclass(frozen=True)
class Preset:
    """sampler: ComfyUI's name; cfg: ordinary guidance where there is no decoupled one; lcm: timesteps on LCM's grid of 50."""

    sampler: str
    cfg: float
    lcm: bool = False


PRESETS = {
    "Hyper": Preset("euler", 1.0),
    "Lightning": Preset("euler", 1.0),
    "LCM": Preset("lcm", 1.5, lcm=True),
    "Turbo": Preset("euler_ancestral", 1.0),
}
SCHEDULER = "simple"
# FastFace section 5.3: one schedule for all of them.
ALPHA, BETA = "1, 1.5, 1.5, 1", "1, 3, 3, 1"


def sampling(model, base: str, steps: int, denoise: float) -> tuple[object, comfy.samplers.KSAMPLER, torch.Tensor]:
    """The model with the base's timesteps, its sampler, and sigmas, [steps + 1]; below denoise 1 the tail of a longer schedule.

    Raises ValueError for a model that is not an SD1, SD2 or SDXL UNet.
    """
    attention_layers(model)
    preset = PRESETS[base]
    if preset.lcm:
        model = comfy_extras.nodes_model_advanced.ModelSamplingDiscrete().patch(model, "lcm", False)[0]
    sigmas = comfy_extras.nodes_custom_sampler.BasicScheduler.execute(model, SCHEDULER, steps, denoise)[0]
    return model, comfy.samplers.sampler_object(preset.sampler), sigmas
