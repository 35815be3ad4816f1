from comfy_api.latest import io

from ..host.attention_maps import SCALE_POWER as NAME, scale_power
from .checks import in_range, layer_names, step_values, verdict
from .types import FASTFACE

PRESETS = ["published code", "paper"]


class ScalePowerAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierScalePowerAttention",
            display_name=NAME,
            category=FASTFACE,
            description="FastFace's first attention transform: raises the face adapter's attention maps to a power and scales them, so that "
                        "the person's face gains and its surroundings follow the prompt. Costs no extra model rows.",
            search_aliases=["fastface", "attention manipulation", "AM1", "faceid"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a face adapter on it: from Face Adapter Apply, or from IPAdapter's FaceID node "
                                                "with weight type linear and embeds scaling 'V only'."),
                io.Float.Input("power", default=1.3, min=0.1, max=4.0, step=0.05,
                               tooltip="The paper's p. Above 1 weak attention fades and the prompt wins around the face. 1 with both scales 1 "
                                       "leaves the model untouched."),
                io.String.Input("scale_down", default="1.55",
                                tooltip="The paper's s in the encoder (and the middle, if named): one number, or one per step such as "
                                        "1, 1.5, 1.5, 1, stretched to any number of steps."),
                io.String.Input("scale_up", default="1.45", tooltip="The paper's s in the decoder: one number, or one per step."),
                io.String.Input("layers", default="d,u",
                                tooltip="Cross-attention layers to transform, such as d,u or all, m, u0-3, d2.0-4. An empty text switches this "
                                        "off. A layer has one transform: the last node wins."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the full noise schedule at which this begins."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the full noise schedule at which this ends."),
                io.Combo.Input("preset", options=PRESETS, default=PRESETS[0], advanced=True,
                               tooltip="The paper prints 1.45 for the encoder and 1.55 for the decoder, its code does the reverse and made the "
                                       "pictures. 'paper' exchanges scale_down and scale_up."),
            ],
            outputs=[io.Model.Output("patched_model", display_name="model",
                                     tooltip="The model with transformed attention, for the sampler or Decoupled CFG. The input model stays as "
                                             "it is.")],
        )

    @classmethod
    def validate_inputs(cls, scale_down=None, scale_up=None, layers=None) -> bool | str:
        return verdict(NAME, (scales, "scale_down", scale_down), (scales, "scale_up", scale_up), (layer_names, "layers", layers))

    @classmethod
    @in_range
    def execute(cls, model, power=1.3, scale_down="1.55", scale_up="1.45", layers="d,u", start=0.0, end=1.0,
                preset=PRESETS[0]) -> io.NodeOutput:
        down, up = scales(NAME, "scale_down", scale_down), scales(NAME, "scale_up", scale_up)
        if preset == "paper":
            down, up = up, down
        return io.NodeOutput(scale_power(model, layers, start, end, power, down, up))


def scales(node: str, name: str, text: str) -> tuple[float, ...]:
    return step_values(node, name, text, 0, 10)
