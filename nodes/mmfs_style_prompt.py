from comfy_api.latest import io

from ..host import mmfs
from .types import MMFS, GuidanceType, MMFSModelType, MMFSStyleType

NAME = "MMFS Style (Prompt)"


class MMFSStylePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSStylePrompt",
            display_name=NAME,
            category=MMFS,
            description="The style of a picture, or the one that a text names, as MMFS's CLIP mapper sees it. MMFS "
            "Few-shot brings it closer.",
            search_aliases=["mmfs", "style from text", "style from picture", "one-shot", "zero-shot", "clip"],
            inputs=[
                MMFSModelType.Input("model", tooltip="From Load MMFS or MMFS Few-shot, of a phase 3 or 4 file."),
                GuidanceType.Input("guidance", tooltip="From CLIP Similarity Loader: clip-vit-base-patch32 for the "
                                                       "published files."),
                io.Image.Input("image", optional=True,
                               tooltip="A stylized face, cut out like the photos. A batch gives a style for each "
                                       "picture. Leave text empty then."),
                io.String.Input("text", default="", multiline=True,
                                tooltip="Words for a style, such as 'watercolor painting', in place of a picture. CLIP "
                                        "reads 77 tokens."),
            ],
            outputs=[MMFSStyleType.Output("style", display_name="style", tooltip="The style, for MMFS Stylize.")],
        )

    @classmethod
    def execute(cls, model, guidance, text="", image=None) -> io.NodeOutput:
        return io.NodeOutput(mmfs.prompt_style(model, guidance, image, text, NAME))
