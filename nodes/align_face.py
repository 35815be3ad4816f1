from comfy_api.latest import io

from ..host.face_crops import ALIGN, align
from .checks import in_range
from .types import FACES, INSIGHTFACE, FaceAnalysisType, FaceLandmarksType, FaceTransformType


class AlignFace(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierAlignFace",
            display_name=ALIGN,
            category=FACES,
            description=(
                "Cuts faces out of photos, upright and at the size that a sampler wants. Paste Face puts them back when"
                " they are stylized."
            ),
            search_aliases=["face crop", "face detailer", "small face", "crop and stitch", "ffhq align"],
            inputs=[
                io.Image.Input("image", tooltip="A photo, or a batch of photos or frames. Alpha is ignored."),
                io.MultiType.Input("faces", [FaceLandmarksType, FaceAnalysisType, *INSIGHTFACE],
                                   tooltip="Where the faces are: Detect Face Landmarks (MediaPipe) of the same "
                                           "pictures; or who finds them: Face Analysis Loader, Demo Face Loader."),
                io.Int.Input("size", default=512, min=64, max=2048, step=8,
                             tooltip="Side of the square crops in pixels: the size your model likes."),
                io.Int.Input("face", default=0, min=-1, max=99,
                             tooltip="Which face of a photo with several: 0 is the largest, 1 the next. -1 takes all."),
                io.Float.Input("smoothing", default=0.0, min=0.0, max=0.95, step=0.05,
                               tooltip="For the frames of a film, where crops would tremble: the share of the place "
                                       "before that each frame keeps. 0 for pictures that have nothing to do with "
                                       "each other."),
            ],
            outputs=[
                io.Image.Output("crop", display_name="crop", tooltip="The faces, upright, photo by photo."),
                FaceTransformType.Output("transform", display_name="transform",
                                         tooltip="Where each crop comes from, for Paste Face."),
                io.Mask.Output("inside", display_name="inside",
                               tooltip="1 where a crop shows the photo, 0 where it lies beyond the border and shows "
                                       "the photo mirrored."),
            ],
        )

    @classmethod
    @in_range
    def execute(cls, image, faces, size=512, face=0, smoothing=0.0) -> io.NodeOutput:
        return io.NodeOutput(*align(image, faces, size, face, smoothing))
