from comfy_api.latest import io

from ..host import clip_similarity
from .types import FASTSAM, GuidanceType

NOTHING = "(put a CLIP folder into models/clip_vision)"


class CLIPSimilarityLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierCLIPSimilarityLoader",
            display_name="CLIP Similarity Loader",
            category=FASTSAM,
            description="Loads a whole CLIP model, pictures and texts in one space, so that FastSAM Mask can look for words and MMFS "
                        "for styles. ComfyUI's own CLIP and CLIP Vision are halves of different models.",
            search_aliases=["clip", "guidance", "text prompt", "fastsam", "mmfs", "dino"],
            inputs=[
                io.Combo.Input("model", options=clip_similarity.model_names() or [NOTHING],
                               tooltip="A folder in models/clip_vision or models/clip with model.safetensors and config.json, such as "
                                       "clip-vit-base-patch32."),
                io.Combo.Input("dino", options=clip_similarity.dino_names(), default=clip_similarity.NO_DINO, optional=True,
                               tooltip="For MMFS Few-shot only: DINO ViT-B/8, a file in models/dino such as "
                                       "dino_vitbase8_pretrain.pth."),
            ],
            outputs=[GuidanceType.Output("guidance", display_name="guidance",
                                         tooltip="The CLIP model, for FastSAM Mask in mode text and for MMFS.")],
        )

    @classmethod
    def execute(cls, model, dino=clip_similarity.NO_DINO) -> io.NodeOutput:
        return io.NodeOutput(clip_similarity.load(model, dino))
