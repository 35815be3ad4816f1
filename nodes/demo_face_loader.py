from comfy_api.latest import io

from ..demo.faces import Analysis, load_face_adapter, load_recognisers
from .types import FaceAdapterType, FaceAnalysisType


class DemoFaceLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierDemoFaceLoader",
            display_name="Demo Face Loader",
            category="Portrait Atelier/Demo",
            description="Loads the tiny face recogniser and the tiny FaceID adapter of the demo model. They need no download and stand in for Face "
                        "Analysis Loader and Face Adapter Loader; they know the demo's procedural portraits only.",
            search_aliases=["insightface", "ipadapter", "faceid", "fastface", "demo"],
            inputs=[],
            outputs=[
                FaceAnalysisType.Output("face_analysis", display_name="face_analysis",
                                        tooltip="For Face Identity Encode and Align Face. It finds the face of a demo portrait in any style, and "
                                                "small upright ones in larger pictures; photographs mean nothing to it."),
                FaceAdapterType.Output("adapter", display_name="adapter",
                                       tooltip="For Face Adapter Apply behind the demo model: a plain FaceID adapter with its LoRA. No CLIP Vision is needed."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(Analysis(load_recognisers().own), load_face_adapter())
