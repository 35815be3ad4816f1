"""What SEAC did in the run of a sampler, in words and pictures."""

from comfy_api.latest import io, ui

from ..host import seac_report
from .types import CATEGORY, SEACTraceType


class SEACReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSEACReport",
            display_name="SEAC Report",
            category=CATEGORY,
            description="Tells what SEAC Patch did in a run: in how many layers it acted, how much of the attention each "
                        "reference got, in which layers and where in the picture, or why nothing could happen.",
            search_aliases=["attention share", "attention map", "does nothing", "debug"],
            inputs=[
                SEACTraceType.Input("trace", tooltip="From SEAC Trace, whose model goes to the sampler."),
                io.Image.Input("images", tooltip="The pictures of that sampler, through VAE Decode: the report waits for "
                                                 "them and draws on them."),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="The report in words."),
                io.Image.Output("plot", display_name="plot",
                                tooltip="The words, and a bar for every attention layer in forward order: the shares of "
                                        "references, source, the picture itself and words."),
                io.Image.Output("overlay", display_name="overlay",
                                tooltip="The pictures in grey, each reference's colour where it got attention; the "
                                        "strongest colour is the greatest share."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, trace, images) -> io.NodeOutput:
        text, plot = seac_report.text(trace.last), seac_report.plot(trace.last)
        overlay = seac_report.overlay(trace.last, images)
        shown = [*ui.PreviewImage(plot, cls=cls).values, *ui.PreviewImage(overlay, cls=cls).values]
        return io.NodeOutput(text, plot, overlay, ui={"images": shown, "text": [text]})
