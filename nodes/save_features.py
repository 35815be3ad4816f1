"""Consistency Features into a file."""

from comfy_api.latest import io

from ..host import feature_files
from .checks import verdict
from .types import CATEGORY, ConsistencyFeaturesType


class SaveFeatures(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSaveFeatures",
            display_name=feature_files.SAVE,
            category=CATEGORY,
            description="Keeps the features of a picture in a file, so that no run has to extract them again: a library "
                        "of styles to keep, to share and to pick from with Load Features.",
            search_aliases=["zepo", "style library", "export features", "safetensors"],
            inputs=[
                io.Model.Input("model", tooltip="The model the features came from. The file remembers it, and Load Features "
                                                "refuses others."),
                ConsistencyFeaturesType.Input("features",
                                              tooltip="Features from Consistency Feature Extract, or after Token "
                                                      "Merge: then the file is smaller."),
                io.String.Input("name", default="my style",
                                tooltip="Name of the file in output/features. Folders are fine: watercolors/lake."),
                io.Boolean.Input("replace", default=False,
                                 tooltip="Replace a file of that name. Otherwise the new one gets a number."),
            ],
            outputs=[ConsistencyFeaturesType.Output("saved_features", display_name="features",
                                                    tooltip="The same features, for SEAC Patch.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        return verdict(feature_files.SAVE, (lambda node, what, text: feature_files.place(text, True), "name", name))

    @classmethod
    def execute(cls, model, features, name="my style", replace=False) -> io.NodeOutput:
        path = feature_files.save(model, features, name, replace)
        return io.NodeOutput(features, ui={"text": [path]})
