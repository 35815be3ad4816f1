from comfy_api.latest import io

from ..host.seac import patched
from .checks import in_range, layer_names, verdict
from .types import CATEGORY, ConsistencyFeaturesType

NAME = "SEAC Patch"


class SEACPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSEACPatch",
            display_name=NAME,
            category=CATEGORY,
            description="Style Enhancement Attention Control: while sampling, self-attention looks at the features of a source picture "
                        "and of a style reference. Sample from the source's latent in about four steps, or without a source from noise.",
            search_aliases=["zepo", "style transfer", "attention control", "portrait stylization"],
            inputs=[
                io.Model.Input("model", tooltip="The model that samples, the one the features came from. A second SEAC Patch on a patched "
                                                "model adds another reference."),
                ConsistencyFeaturesType.Input("source", optional=True,
                                              tooltip="Features of the picture to stylize. Leave empty to draw a prompt in the reference's "
                                                      "style: the sampled picture's own tokens then take its place. Empty as well on a second "
                                                      "SEAC Patch."),
                ConsistencyFeaturesType.Input("reference", tooltip="Features of the style reference, or of a batch of them."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Where in the sampled picture this reference acts. A batch of masks goes with a batch of pictures."),
                io.Float.Input("style_enhancement", default=1.2, min=0.0, max=3.0, step=0.05,
                               tooltip="The paper's lambda: multiplies the reference's keys. Above 1 style wins more of the attention; "
                                       "useful between 0.8 and 1.5."),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="Share of attention that source and reference take from the picture's own. 1 is the paper; "
                                       "0 leaves the model untouched. On a second patch: weight of its reference."),
                io.Float.Input("style_share", default=0.5, min=0.0, max=1.0, step=0.05,
                               tooltip="How that share divides: 0 all to the source, 1 all to the reference. 0.5 is the paper."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the full noise schedule at which this begins. With denoise 0.5 sampling itself begins "
                                       "near 0.5."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the full noise schedule at which this ends."),
                io.String.Input("layers", default="auto",
                                tooltip="Attention layers to control: auto (all that both features hold), or a list such as u1-8, d3, u0.2-9, "
                                        "b0-14. An empty text switches this off."),
                io.Combo.Input("balance", options=["tokens", "images"], default="tokens", advanced=True,
                               tooltip="tokens: every token counts alike, as in the paper, so larger pictures and more references weigh more. "
                                       "images: source and reference weigh alike whatever their size and number."),
                io.Combo.Input("pairing", options=["all", "cycle"], default="all", advanced=True,
                               tooltip="Batch of references: all of them for every picture, or reference i for picture i, starting over."),
            ],
            outputs=[io.Model.Output("patched_model", display_name="model",
                                     tooltip="The model with attention control, for the sampler. The input model stays as it is.")],
        )

    @classmethod
    def validate_inputs(cls, layers=None) -> bool | str:
        return verdict(NAME, (layer_names, "layers", layers))

    @classmethod
    @in_range
    def execute(cls, model, reference, source=None, mask=None, style_enhancement=1.2, strength=1.0, style_share=0.5, start=0.0,
                end=1.0, layers="auto", balance="tokens", pairing="all") -> io.NodeOutput:
        return io.NodeOutput(patched(
            model, source, reference, style_enhancement=style_enhancement, strength=strength, style_share=style_share, start=start,
            end=end, layers=layers, mask=mask, per_group=balance == "images", cycle=pairing == "cycle"))
