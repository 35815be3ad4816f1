from comfy_api.latest import io

from ..host import mmfs
from .types import MMFS, StyleGANModelType


class StyleGANLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierStyleGANLoader",
            display_name="Load StyleGAN",
            category=MMFS,
            description="Loads a StyleGAN2 generator in the layout that JoJoGAN, StyleGAN-NADA and Mind the Gap share "
            "(g_ema). Nothing is compiled, no code of the file is run.",
            search_aliases=["stylegan2", "jojogan", "stylegan-nada", "g_ema", "checkpoint"],
            inputs=[
                io.Combo.Input("file",
                               options=mmfs.files(mmfs.GENERATORS) or ["(put a StyleGAN2 file into models/stylegan)"],
                               tooltip="A file in models/stylegan: .pt, .pth or .safetensors."),
                io.Combo.Input("precision", options=list(mmfs.PRECISIONS), default="float32", advanced=True,
                               tooltip="float32 is safe; the others take half the memory."),
            ],
            outputs=[
                StyleGANModelType.Output("model", display_name="model", tooltip="The generator, for StyleGAN Generate.")
            ],
        )

    @classmethod
    def execute(cls, file, precision="float32") -> io.NodeOutput:
        return io.NodeOutput(mmfs.load(file, mmfs.GENERATORS, precision))
