from comfy_api.latest import io

from ..host import mmfs
from .checks import in_range
from .types import MMFS, MMFSModelType, MMFSStyleType, seed_input


class MMFSStyleSeed(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSStyleSeed",
            display_name="MMFS Style (Seed)",
            category=MMFS,
            description="A random style that MMFS has learnt, or a mix of two: the coarse layers of one, the fine "
            "layers of the other.",
            search_aliases=["mmfs", "random style", "style mixing", "stylegan"],
            inputs=[
                MMFSModelType.Input("model", tooltip="From Load MMFS or MMFS Few-shot."),
                seed_input("seed", "Another number, another style."),
                seed_input("mix_seed", "A second style, for the finer layers; see mix_at.", default=1),
                io.Int.Input("mix_at", default=10, min=1, max=10,
                             tooltip="How many of the ten layers, coarse ones first, keep the style of seed; the "
                                     "others take that of mix_seed. 8 or 9 mixes in only its fine colours; 10 mixes "
                                     "nothing."),
            ],
            outputs=[MMFSStyleType.Output("style", display_name="style", tooltip="The style, for MMFS Stylize.")],
        )

    @classmethod
    @in_range
    def execute(cls, model, seed=0, mix_seed=1, mix_at=10) -> io.NodeOutput:
        return io.NodeOutput(mmfs.seed_style(model, seed, mix_seed, mix_at))
