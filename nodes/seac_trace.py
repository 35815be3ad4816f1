"""Has the sampling runs of a model recorded for SEAC Report."""

from comfy_api.latest import io

from ..host.seac_trace import traced
from .types import CATEGORY, SEACTraceType


class SEACTrace(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSEACTrace",
            display_name="SEAC Trace",
            category=CATEGORY,
            description="Measures what SEAC Patch does while the model samples, for SEAC Report. The pictures stay the "
                        "same, bit for bit; sampling takes longer, so take it out when you know enough.",
            search_aliases=["seac report", "attention share", "does nothing", "debug"],
            inputs=[io.Model.Input("model", tooltip="The model that samples, before or behind SEAC Patch.")],
            outputs=[
                io.Model.Output("traced_model", display_name="model", tooltip="The model, for one sampler."),
                SEACTraceType.Output("trace", display_name="trace",
                                     tooltip="What is measured in that sampler's last run, for SEAC Report."),
            ],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(*traced(model))
