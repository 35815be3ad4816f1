from comfy_api.latest import io

from ..host.faces import ENCODE, encode
from .checks import in_range
from .types import FASTFACE, INSIGHTFACE, FaceAnalysisType, FaceIdentityType


class FaceIdentityEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFaceIdentityEncode",
            display_name=ENCODE,
            category=FASTFACE,
            description="Reads who is in a photo, or in several photos, for Face Adapter Apply.",
            search_aliases=["faceid", "face embedding", "identity", "fastface"],
            inputs=[
                io.MultiType.Input("face_analysis", [FaceAnalysisType, *INSIGHTFACE],
                                   tooltip="From Face Analysis Loader. The InsightFace loaders of other packs (IPAdapter, InstantID, PuLID) fit "
                                           "too; FaceID needs buffalo_l."),
                io.Image.Input("image", tooltip="A photo that shows the face with space around it, or a batch of photos. Alpha is ignored."),
                io.ClipVision.Input("clip_vision", optional=True,
                                    tooltip="CLIP-ViT-H-14 from Load CLIP Vision. Needed for FaceID-Plus adapters only."),
                io.Combo.Input("pick", options=["largest", "score", "index"], default="largest",
                               tooltip="Which face of a photo with several: the largest, the one the detector is surest of, or number face_index."),
                io.Int.Input("face_index", default=0, min=0, max=99, advanced=True,
                             tooltip="With pick index: which face counted from the left, beginning with 0."),
                io.Combo.Input("if_no_face", options=["error", "skip", "previous"], default="error",
                               tooltip="When no photo shows a face: stop with an error, or skip, which leaves the model as it is. In a batch, "
                                       "photos without a face are left out; with previous they repeat the face before."),
                io.Combo.Input("combine", options=["mean", "tokens"], default="mean",
                               tooltip="Several photos: the mean makes one person of them, tokens puts every photo's person beside the others."),
                io.Combo.Input("clip_channels", options=["bgr", "rgb"], default="bgr", advanced=True,
                               tooltip="Order of colour channels that CLIP gets. bgr as in the adapters' demo, diffusers and FastFace; rgb as in "
                                       "IPAdapter_plus. FaceID-Plus only."),
            ],
            outputs=[
                FaceIdentityType.Output("identity", display_name="identity", tooltip="The person or people, for Face Adapter Apply."),
                io.Image.Output("crop", display_name="crop", tooltip="The aligned faces, 224 x 224: what was found. Black if nothing was."),
                io.Int.Output("found", display_name="found", tooltip="In how many photos a face was found."),
            ],
        )

    @classmethod
    @in_range
    def execute(cls, face_analysis, image, clip_vision=None, pick="largest", face_index=0, if_no_face="error", combine="mean",
                clip_channels="bgr") -> io.NodeOutput:
        return io.NodeOutput(*encode(face_analysis, image, clip_vision, pick=pick, face_index=face_index, if_no_face=if_no_face,
                                     combine=combine, bgr_clip=clip_channels == "bgr"))
