from comfy_api.latest import io

from ..host.few_step import ALPHA, BETA, PRESETS, sampling
from .checks import in_range
from .types import FASTFACE

NAME = "Few-Step Preset"


class FewStepPreset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFewStepPreset",
            display_name=NAME,
            category=FASTFACE,
            description="Sampler, sigmas and guidance of a distilled SDXL or SD1.5 model, as in FastFace's experiments. For SamplerCustomAdvanced "
                        "with Decoupled CFG Guider or CFG Guider.",
            search_aliases=["fastface", "hyper", "lightning", "lcm", "turbo", "distilled", "4 steps"],
            inputs=[
                io.Model.Input("model", tooltip="The distilled model: a checkpoint, or a base model with its distillation LoRA."),
                io.Combo.Input("base", options=list(PRESETS), default="Hyper",
                               tooltip="How the model was distilled. Hyper, Lightning: euler. LCM: lcm sampling. Turbo: euler ancestral, pictures of 512 "
                                       "pixels. On Turbo at LoRA strength 0.5 the paper's method fails more faces than it saves."),
                io.Int.Input("steps", default=4, min=1, max=50,
                             tooltip="The paper uses 4. Hyper and Lightning weights are made for the number of steps in their name."),
                io.Float.Input("denoise", default=1.0, min=0.05, max=1.0, step=0.05,
                               tooltip="Below 1 sampling starts from a picture: the steps are then the last ones of a longer schedule."),
            ],
            outputs=[
                io.Model.Output("preset_model", display_name="model",
                                tooltip="The model with the timesteps of its distillation, for the guider. The input model stays as it is."),
                io.Sampler.Output(tooltip="The sampler, for SamplerCustomAdvanced."),
                io.Sigmas.Output(tooltip="The noise levels of the steps, for SamplerCustomAdvanced."),
                io.Float.Output("cfg", display_name="cfg", tooltip="Guidance scale for CFG Guider, where there is no Decoupled CFG."),
                io.String.Output("alpha", display_name="alpha", tooltip="The paper's alpha per step, for Decoupled CFG."),
                io.String.Output("beta", display_name="beta", tooltip="The paper's beta per step, for Decoupled CFG."),
                io.Int.Output("steps_out", display_name="steps", tooltip="The number of steps, for KSampler."),
            ],
        )

    @classmethod
    @in_range
    def execute(cls, model, base="Hyper", steps=4, denoise=1.0) -> io.NodeOutput:
        return io.NodeOutput(*sampling(model, base, steps, denoise), PRESETS[base].cfg, ALPHA, BETA, steps)
