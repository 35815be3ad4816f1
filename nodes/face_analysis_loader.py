from comfy_api.latest import io

from ..host.faces import LOADER, PROVIDERS, choices, face_packs, load_analysis
from .types import FASTFACE, FaceAnalysisType


class FaceAnalysisLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFaceAnalysisLoader",
            display_name=LOADER,
            category=FASTFACE,
            description="Loads a face detector and a face recogniser with the optional package insightface. Nothing is downloaded: unpack a "
                        "face pack into models/insightface first.",
            search_aliases=["insightface", "buffalo_l", "antelopev2", "faceid", "fastface"],
            inputs=[
                io.Combo.Input("pack", options=choices(list(face_packs()), "none: unpack buffalo_l into models/insightface/models/buffalo_l"),
                               tooltip="A folder below models/insightface with .onnx files. FaceID adapters were trained with buffalo_l; its "
                                       "licence allows non-commercial use only."),
                io.Combo.Input("provider", options=["auto", *PROVIDERS], default="auto",
                               tooltip="Where onnxruntime computes. auto: the GPU if the installed onnxruntime can use it, else the CPU, which "
                                       "needs about a second per photo."),
            ],
            outputs=[FaceAnalysisType.Output("face_analysis", display_name="face_analysis", tooltip="For Face Identity Encode and Align Face.")],
        )

    @classmethod
    def execute(cls, pack, provider="auto") -> io.NodeOutput:
        return io.NodeOutput(load_analysis(pack, provider))
