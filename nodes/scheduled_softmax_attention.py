from comfy_api.latest import io

from ..host.attention_maps import SCHEDULED_SOFTMAX as NAME, scheduled_softmax
from .checks import in_range, layer_names, step_values, verdict
from .scale_power_attention import scales
from .types import FASTFACE


class ScheduledSoftmaxAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierScheduledSoftmaxAttention",
            display_name=NAME,
            category=FASTFACE,
            description="FastFace's second attention transform: pushes the face adapter's attention maps apart, strongest in the first step, "
                        "for larger faces and fewer pictures without one. Costs no extra model rows.",
            search_aliases=["fastface", "attention manipulation", "AM2", "faceid"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a face adapter on it: from Face Adapter Apply, or from IPAdapter's FaceID node "
                                                "with weight type linear and embeds scaling 'V only'."),
                io.String.Input("sharpness", default="7.5, 5, 5, 5",
                                tooltip="The paper's d, per step and stretched to any number of steps: how hard values above the quantile are "
                                        "pushed to 1 and those below to 0."),
                io.String.Input("scale", default="1, 1.55, 1.55, 1.55", tooltip="The paper's s, per step: multiplies the transformed map."),
                io.Float.Input("adain_weight", default=0.3, min=0.0, max=1.0, step=0.05,
                               tooltip="How far map and output take on the statistics of the untransformed ones. 0.3 is the paper's w = 0.7, "
                                       "counted from the other end."),
                io.String.Input("layers", default="d,u",
                                tooltip="Cross-attention layers to transform, such as d,u or all, m, u0-3, d2.0-4. An empty text switches this "
                                        "off. A layer has one transform: the last node wins, so two nodes can treat d and u differently."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the full noise schedule at which this begins."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the full noise schedule at which this ends."),
                io.Float.Input("quantile", default=0.65, min=0.0, max=1.0, step=0.05, advanced=True,
                               tooltip="The paper's p: the share of the picture that is pushed down."),
                io.Combo.Input("coupling", options=["rows", "published"], default="rows", advanced=True,
                               tooltip="rows: every picture and prompt by itself. published: as the paper's code, where the pictures and prompts "
                                       "of a batch share their extrema, so that results depend on the batch; for comparison only."),
            ],
            outputs=[io.Model.Output("patched_model", display_name="model",
                                     tooltip="The model with transformed attention, for the sampler or Decoupled CFG. The input model stays as "
                                             "it is.")],
        )

    @classmethod
    def validate_inputs(cls, sharpness=None, scale=None, layers=None) -> bool | str:
        return verdict(NAME, (sharpnesses, "sharpness", sharpness), (scales, "scale", scale), (layer_names, "layers", layers))

    @classmethod
    @in_range
    def execute(cls, model, sharpness="7.5, 5, 5, 5", scale="1, 1.55, 1.55, 1.55", adain_weight=0.3, layers="d,u", start=0.0, end=1.0,
                quantile=0.65, coupling="rows") -> io.NodeOutput:
        d, s = sharpnesses(NAME, "sharpness", sharpness), scales(NAME, "scale", scale)
        return io.NodeOutput(scheduled_softmax(model, layers, start, end, d, s, quantile, adain_weight, coupling == "published"))


def sharpnesses(node: str, name: str, text: str) -> tuple[float, ...]:
    return step_values(node, name, text, 0, 1000)
