"""More or less of the picture that an edit model was given."""

from comfy_api.latest import io

from ..host.reference_latents import NODE, weighted
from .checks import in_range, layer_names, verdict
from .types import FASTFACE


class ReferenceWeight(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierReferenceWeight",
            display_name=NODE,
            category=FASTFACE,
            description="For edit models (Flux.1 Kontext, FLUX.2, Qwen-Image-Edit, Krea 2): how much the sampled picture looks at the "
                        "reference latents. More keeps more of the person, less follows the words more.",
            search_aliases=["identity", "reference latent", "kontext", "edit strength", "attention share"],
            inputs=[
                io.Model.Input("model", tooltip="The edit model that samples, before or behind SEAC Patch."),
                io.Float.Input("weight", default=1.0, min=0.0, max=10.0, step=0.05,
                               tooltip="What a token of a reference counts in attention, against 1 of all others. 1 leaves the model "
                                       "untouched, 0 hides the references from the picture."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the full noise schedule at which this begins."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the full noise schedule at which this ends."),
                io.String.Input("layers", default="auto", advanced=True,
                                tooltip="Blocks where this acts: auto (all), or a list such as b0-14. An empty text switches this off."),
            ],
            outputs=[io.Model.Output("patched_model", display_name="model",
                                     tooltip="The model with that weight, for the sampler. The input model stays as it is.")],
        )

    @classmethod
    def validate_inputs(cls, layers=None) -> bool | str:
        return verdict(NODE, (layer_names, "layers", layers))

    @classmethod
    @in_range
    def execute(cls, model, weight=1.0, start=0.0, end=1.0, layers="auto") -> io.NodeOutput:
        return io.NodeOutput(weighted(model, weight, start, end, layers))
