from comfy_api.latest import io

from ..host import mmfs
from .checks import in_range
from .types import MMFS, StyleGANModelType, seed_input

NAME = "StyleGAN Generate"
MOST_LAYERS = 18  # of 1024 pixels


class StyleGANGenerate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierStyleGANGenerate",
            display_name=NAME,
            category=MMFS,
            description="Faces that nobody has, one for each seed; mixed with another, or on the way to it.",
            search_aliases=["stylegan2", "random face", "style mixing", "interpolate", "truncation"],
            inputs=[
                StyleGANModelType.Input("model", tooltip="From Load StyleGAN."),
                seed_input("seed", "The face; a batch counts on from here."),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="How many faces."),
                io.Float.Input("truncation", default=0.7, min=0.0, max=1.0, step=0.05,
                               tooltip="1: all that the generator knows, odd ones too. Less: closer to its average "
                                       "face, which is 0."),
                seed_input("mix_seed", "The second face.", default=1),
                io.Int.Input("mix_at", default=MOST_LAYERS, min=0, max=MOST_LAYERS,
                             tooltip="How many layers, coarse ones first, keep the first face; the others move towards "
                                     "the second. 0: all move. 4: the pose stays. 8: only colours move. 18: nothing "
                                     "does."),
                io.Float.Input("blend", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="How far those layers move: 1 is a mix of both faces, less is on the way."),
            ],
            outputs=[io.Image.Output("IMAGE", display_name="image", tooltip="The faces.")],
        )

    @classmethod
    @in_range
    def execute(
        cls, model, seed=0, count=1, truncation=0.7, mix_seed=1, mix_at=MOST_LAYERS, blend=1.0
    ) -> io.NodeOutput:
        return io.NodeOutput(mmfs.generate(model, seed, count, truncation, mix_seed, mix_at, blend, NAME))
