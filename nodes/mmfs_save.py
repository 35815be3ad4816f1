from comfy_api.latest import io

from ..host import mmfs, unfinished
from .checks import verdict
from .types import MMFS, MMFSModelType

NAME = "Save MMFS"


class MMFSSave(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSSave",
            display_name=NAME,
            category=MMFS,
            description="Saves a stylizer as safetensors in the output folder, with what it was trained from and for. "
            "Load MMFS lists what lies in output/mmfs. Also turns a published .pth into a smaller, safer file.",
            search_aliases=["mmfs", "convert", "export", "safetensors"],
            is_output_node=True,
            inputs=[
                MMFSModelType.Input("model", tooltip="From MMFS Few-shot or Load MMFS."),
                io.String.Input("name", default="mmfs/my_style",
                                tooltip="A folder and a name below the output folder; a number is added, no file is "
                                        "overwritten."),
                io.Combo.Input("dtype", options=["float32", "float16"], default="float32",
                               tooltip="float32: 125 MB for the published network. float16: half of it, with a "
                                       "rounding that is hard to see."),
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        return verdict(NAME, (name_works, "name", name))

    @classmethod
    def execute(cls, model, name="mmfs/my_style", dtype="float32") -> io.NodeOutput:
        name_works(NAME, "name", name)
        mmfs.save(model, name, dtype, NAME)
        return io.NodeOutput()


def name_works(node: str, name: str, text: str) -> None:
    unfinished.check_prefix(text, 0, node, name, "a model", "mmfs/my_style")
