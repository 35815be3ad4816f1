from comfy_api.latest import io

from ..host.adapters import check_lora, lora_names, read_lora
from ..host.cross_injection import Branch
from .checks import in_range
from .types import DIFFSTYLER, BranchesType

NAME = "FastSAM Mask Blend"
NONE = "none"


class FastSAMMaskBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFastSAMMaskBlend",
            display_name=NAME,
            category=DIFFSTYLER,
            description="One style and the region it goes to: a prompt, a style LoRA and a mask. Chain one node per style; where masks "
                        "overlap, the later style lies on top.",
            search_aliases=["diffstyler", "regional style", "regional lora", "mask", "fastsam"],
            inputs=[
                BranchesType.Input("branches", optional=True, tooltip="Styles from other FastSAM Mask Blend nodes. This one lies on top of them."),
                io.Conditioning.Input("prompt", tooltip="The style's prompt, for example the caption its LoRA was trained with."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Where this style goes: from FastSAM Mask, or any other mask made from the source picture. Grey is a soft edge; several "
                                      "masks are united; none is everywhere."),
                io.LoraModel.Input("lora", optional=True, tooltip="A style LoRA straight from Style LoRA Train, instead of a file."),
                io.Combo.Input("lora_name", options=[NONE, *lora_names()], default=NONE,
                               tooltip="A style LoRA from the loras folder. none, and no lora connected: the prompt alone makes the style."),
                io.Float.Input("strength", default=1.0, min=-5.0, max=5.0, step=0.05,
                               tooltip="How strongly the LoRA acts on this style's part. 0 is the base model."),
            ],
            outputs=[BranchesType.Output("all_branches", display_name="branches", tooltip="All styles so far, for LoRA Cross-Injection or the next FastSAM Mask Blend.")],
        )

    @classmethod
    @in_range
    def execute(cls, prompt, branches=(), mask=None, lora=None, lora_name=NONE, strength=1.0) -> io.NodeOutput:
        if lora is not None and lora_name != NONE:
            raise ValueError(f"{NAME} has two LoRAs: one connected and the file '{lora_name}'. Set lora_name to none or disconnect 'lora'; a second "
                             "style takes a second node.")
        name = lora_name if lora is None else "of the 'lora' input"
        if lora is not None:
            check_lora(lora, name)
        elif lora_name != NONE:
            lora = read_lora(lora_name)
        return io.NodeOutput((*(branches or ()), Branch(prompt, mask, lora, name, strength)))
