"""Consistency Features from a file."""

import os

from comfy_api.latest import io

from ..host import feature_files
from .types import CATEGORY, ConsistencyFeaturesType

NOTHING = "(none yet: Save Features makes them)"


class LoadFeatures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierLoadFeatures",
            display_name=feature_files.LOAD,
            category=CATEGORY,
            description="Takes features from a file that Save Features wrote, in place of a style picture and its "
                        "extraction. Refuses those of another model.",
            search_aliases=["zepo", "style library", "import features", "safetensors"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample, after its LoRAs: the one that the features came "
                                                "from."),
                io.Combo.Input("file", options=feature_files.names() or [NOTHING],
                               tooltip="A file in output/features, where Save Features puts it, or in models/features."),
            ],
            outputs=[ConsistencyFeaturesType.Output("consistency_features", display_name="features",
                                                    tooltip="The features, merged where they were saved after Token Merge, "
                                                            "for SEAC Patch.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, file):
        """A file replaced by another is another style. Errors belong to execute, where the user sees them."""
        try:
            return os.stat(feature_files.path_of(file)).st_mtime_ns
        except (ValueError, OSError):
            return None

    @classmethod
    def execute(cls, model, file) -> io.NodeOutput:
        return io.NodeOutput(feature_files.load(model, file))
