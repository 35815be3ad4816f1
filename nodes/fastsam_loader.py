import os

from comfy_api.latest import io

from ..host import fastsam
from .types import FASTSAM, FastSAMModelType

NOTHING = "(put a FastSAM .onnx into models/fastsam)"


class FastSAMLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFastSAMLoader",
            display_name="Load FastSAM (ONNX)",
            category=FASTSAM,
            description="Opens a FastSAM network that you exported to ONNX, for FastSAM Segment. Needs the package onnxruntime. The pack ships "
                        "no weights.",
            search_aliases=["fastsam", "segment anything", "yolov8-seg", "onnx"],
            inputs=[
                io.Combo.Input("file", options=fastsam.model_names() or [NOTHING],
                               tooltip="An .onnx file in models/fastsam. Of a .pt file this node only says that it must be exported first."),
                io.Combo.Input("provider", options=fastsam.PROVIDERS, default=fastsam.PROVIDERS[0],
                               tooltip="auto: the NVIDIA card if onnxruntime can use it, else the CPU, with a warning in the log. cpu: always the CPU."),
            ],
            outputs=[FastSAMModelType.Output("fastsam_model", display_name="fastsam_model", tooltip="The opened network, for FastSAM Segment.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file, provider):
        """A new export under the old name is a new model. Errors belong to execute, where the user sees them."""
        try:
            return os.stat(fastsam.model_path(file)).st_mtime_ns
        except (ValueError, OSError):
            return None

    @classmethod
    def execute(cls, file, provider=fastsam.PROVIDERS[0]) -> io.NodeOutput:
        return io.NodeOutput(fastsam.load(file, provider))
