from comfy_api.latest import io

from ..host.face_crops import PASTE, paste
from .checks import in_range
from .types import FACES, FaceTransformType


class PasteFace(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierPasteFace",
            display_name=PASTE,
            category=FACES,
            description=(
                "Puts the crops of Align Face back where they were, with a soft border. The rest of the photo stays as"
                " it is."
            ),
            search_aliases=["uncrop face", "face detailer", "stitch face", "paste back"],
            inputs=[
                io.Image.Input("image", tooltip="The photos that Align Face got."),
                io.Image.Input("crop",
                               tooltip="The crops of Align Face after whatever you did to them, in the same order. "
                                       "They may be larger or smaller, but must be square."),
                FaceTransformType.Input("transform", tooltip="From Align Face."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Where a crop counts, laid over the crop: one for all, or one for each. White "
                                      "replaces the photo."),
                io.Float.Input("feather", default=0.08, min=0.0, max=0.5, step=0.01,
                               tooltip="Width of the soft border inside the crop, as a share of its side. 0 is a hard "
                                       "edge."),
                io.Float.Input("opacity", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="How much of the crop is seen. 0 leaves the photo as it is."),
            ],
            outputs=[
                io.Image.Output("image_out", display_name="image", tooltip="The photos with the faces put back."),
                io.Mask.Output("replaced", display_name="replaced",
                               tooltip="How much of each pixel was replaced: 0 outside the faces, 1 in them."),
            ],
        )

    @classmethod
    @in_range
    def execute(cls, image, crop, transform, mask=None, feather=0.08, opacity=1.0) -> io.NodeOutput:
        return io.NodeOutput(*paste(image, crop, transform, mask, feather, opacity))
