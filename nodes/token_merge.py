from comfy_api.latest import io

from ..host.merge import merge_features
from .checks import in_range
from .types import CATEGORY, MAX_SEED, ConsistencyFeaturesType

NAME = "Token Merge"


class TokenMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierTokenMerge",
            display_name=NAME,
            category=CATEGORY,
            description="Averages the most similar tokens of the features, so that attention to source and reference costs no more "
                        "than plain self-attention. Happens once, before sampling.",
            search_aliases=["tome", "zepo", "merge features"],
            inputs=[
                ConsistencyFeaturesType.Input("features", tooltip="Features from Consistency Feature Extract, not merged yet."),
                io.Float.Input("ratio", default=0.5, min=0.0, max=0.75, step=0.05,
                               tooltip="Share of tokens that merge into a similar neighbour. The paper uses 0.5; 0 changes nothing."),
                io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=False,
                             tooltip="Chooses the token of every 2x2 cell that others merge into."),
                io.Boolean.Input("weigh_merged", default=False, advanced=True,
                                 tooltip="Let a merged token count as much as all the tokens it stands for. Off in the paper."),
            ],
            outputs=[ConsistencyFeaturesType.Output("merged_features", display_name="features",
                                                    tooltip="Features with fewer tokens, for SEAC Patch.")],
        )

    @classmethod
    @in_range
    def execute(cls, features, ratio=0.5, seed=0, weigh_merged=False) -> io.NodeOutput:
        return io.NodeOutput(merge_features(features, ratio, seed, weigh_merged))
