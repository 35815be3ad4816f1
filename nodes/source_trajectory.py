from comfy_api.latest import io

from ..host import trajectory
from .checks import in_range
from .types import DIFFSTYLER, TrajectoryType, seed_input

NAME = "Source Trajectory"


class SourceTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSourceTrajectory",
            display_name=NAME,
            category=DIFFSTYLER,
            description="Records how a picture becomes noise on the sampling grid, so that LoRA Cross-Injection can restyle it from there "
                        "and leave everything outside the masks as it was. Keeps latents only, in the computer's memory.",
            search_aliases=["diffstyler", "ddim inversion", "inversion", "style transfer"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample, without the styles' LoRAs. Connect the same line to LoRA Cross-Injection."),
                io.Latent.Input("latent", tooltip="The picture to restyle, through VAE Encode. One picture, no noise mask."),
                io.Conditioning.Input("empty_prompt", tooltip="The prompt of the source's own denoising: an empty CLIP Text Encode in the paper."),
                io.Combo.Input("mode", options=list(trajectory.MODES), default="ddim",
                               tooltip="ddim: inversion with the model. forward: noise added, no model calls. reference: 999 first-order steps, as in the "
                                       "published code. shared noise: for few-step models, experimental."),
                io.Int.Input("steps", default=50, min=1, max=1000,
                             tooltip="Sampling steps. The paper takes 50; for shared noise with an LCM or Turbo model take 4."),
                io.Int.Input("fixed_point", default=0, min=0, max=5,
                             tooltip="Refinements of every ddim step, each one more model call per step. More gives the source back more exactly."),
                seed_input("seed", "Seed of the noise in modes forward and shared noise."),
                io.Int.Input("memory_mb", default=256, min=1, max=65536, advanced=True,
                             tooltip="Most memory, in MiB of RAM, that the recorded latents may take. 50 steps of 512 x 512 pixels take 3.2; the log says how "
                                     "much was used."),
            ],
            outputs=[TrajectoryType.Output("trajectory", display_name="source", tooltip="The recorded path, for LoRA Cross-Injection.")],
        )

    @classmethod
    @in_range
    def execute(cls, model, latent, empty_prompt, mode="ddim", steps=50, fixed_point=0, seed=0, memory_mb=256) -> io.NodeOutput:
        return io.NodeOutput(trajectory.record(model, latent, empty_prompt, mode=mode, steps=steps, fixed_point=fixed_point, seed=seed,
                                               budget=memory_mb * 2**20))
