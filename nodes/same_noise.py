"""A batch of different pictures, each with the noise that it would get alone."""

from comfy_api.latest import io

from ..host import same_noise
from .types import CATEGORY


class SameNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSameNoise",
            display_name=same_noise.NODE,
            category=CATEGORY,
            description="Gives every picture of a batch the noise that it would get alone. For a batch of different "
                        "portraits with one seed: each comes out as if sampled by itself.",
            search_aliases=["batch noise", "fixed seed", "batch of portraits"],
            inputs=[io.Model.Input("model", tooltip="The model that samples. Put this anywhere before the sampler.")],
            outputs=[io.Model.Output("patched_model", display_name="model",
                                     tooltip="The model with one noise for all pictures of a batch.")],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(same_noise.same_noise(model))
