from comfy_api.latest import io

from ..host.faces import adapter_files, adapter_path, choices
from ..identity.adapter import load_adapter
from .types import FASTFACE, FaceAdapterType


class FaceAdapterLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFaceAdapterLoader",
            display_name="Face Adapter Loader",
            category=FASTFACE,
            description="Loads an IP-Adapter FaceID, FaceID-Plus or FaceID-Plus v2 file for SD1.5 or SDXL. The kind is read from its content.",
            search_aliases=["ipadapter", "faceid", "plusv2", "fastface"],
            inputs=[
                io.Combo.Input("file", options=choices(adapter_files(), "none: put ip-adapter-faceid files into models/ipadapter"),
                               tooltip="A .safetensors or .bin file in models/ipadapter. Its LoRA is inside: no separate LoRA file is needed."),
                io.Combo.Input("version", options=["auto", "v1", "v2"], default="auto",
                               tooltip="Of FaceID-Plus, whose versions hold the same tensors. auto: v2 if the file's name says plusv2. Others "
                                       "ignore it."),
            ],
            outputs=[FaceAdapterType.Output("adapter", display_name="adapter", tooltip="For Face Adapter Apply.")],
        )

    @classmethod
    def execute(cls, file, version="auto") -> io.NodeOutput:
        return io.NodeOutput(load_adapter(adapter_path(file), version))
