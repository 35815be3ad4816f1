from comfy_api.latest import io

from ..host import mmfs
from .types import MMFS, MMFSModelType


class MMFSLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSLoader",
            display_name="Load MMFS",
            category=MMFS,
            description="Loads a face stylizer of MMFS: an encoder that keeps the face and a StyleGAN2 decoder that "
            "paints it in a random style, in that of a picture, or in that of a text.",
            search_aliases=["mmfs", "stylegan", "face stylization", "checkpoint"],
            inputs=[
                io.Combo.Input("file", options=mmfs.files(mmfs.FOLDER) or ["(put an MMFS file into models/mmfs)"],
                               tooltip="A file in models/mmfs, as published (.pth) or saved by Save MMFS. Files of "
                                       "phase 2 know random styles; those of phases 3 and 4 also pictures and texts."),
                io.Combo.Input("precision", options=list(mmfs.PRECISIONS), default="float32", advanced=True,
                               tooltip="float32 is safe. bfloat16 and float16 take half the memory; float16 may "
                                       "overflow with trained weights."),
            ],
            outputs=[
                MMFSModelType.Output("model", display_name="model", tooltip="The stylizer, for the MMFS nodes."),
            ],
        )

    @classmethod
    def execute(cls, file, precision="float32") -> io.NodeOutput:
        return io.NodeOutput(mmfs.load(file, mmfs.FOLDER, precision))
