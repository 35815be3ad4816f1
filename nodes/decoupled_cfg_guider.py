from comfy_api.latest import io

from ..host.decoupled_guidance import Guider
from .checks import in_range
from .decoupled_cfg import guidance, refusal, widgets
from .types import FASTFACE

NAME = "Decoupled CFG Guider"


class DecoupledCFGGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierDecoupledCFGGuider",
            display_name=NAME,
            category=FASTFACE,
            description="Decoupled CFG for SamplerCustomAdvanced, with a prompt of its own for the prediction of the identity alone. Without a "
                        "face adapter it guides by two prompts instead.",
            search_aliases=["fastface", "DCG", "decoupled guidance", "cfg", "faceid", "guider"],
            inputs=[
                io.Model.Input("model", tooltip="The model, with or without a face adapter. No other node on it may own the guidance, such as "
                                                "RescaleCFG."),
                io.Conditioning.Input("positive", tooltip="The prompt: style, clothes, surroundings."),
                io.Conditioning.Input("negative", tooltip="The null prompt, without the identity. The paper's is empty."),
                io.Conditioning.Input("null", optional=True,
                                      tooltip="The prompt that goes with the identity alone (DCG_2, DCG_3). The negative prompt if not connected."),
                *widgets(),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(cls, alpha=None, beta=None) -> bool | str:
        return refusal(NAME, alpha, beta)

    @classmethod
    @in_range
    def execute(cls, model, positive, negative, null=None, formulation="DCG_2", alpha="1, 1.5, 1.5, 1", beta="1, 3, 3, 1", rescale=0.75,
                rescale_steps="guided", routing="shared") -> io.NodeOutput:
        return io.NodeOutput(Guider(model, guidance(NAME, formulation, alpha, beta, rescale, rescale_steps, routing), positive, negative, null))
