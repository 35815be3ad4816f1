from comfy_api.latest import io

from ..host import mmfs
from .checks import in_range
from .types import MMFS, MMFSModelType, MMFSStyleType, seed_input

NAME = "MMFS Stylize"


class MMFSStylize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSStylize",
            display_name=NAME,
            category=MMFS,
            description="Paints faces in a style, in one pass of the network. Cut them out with Align Face first, put "
            "them back with Paste Face.",
            search_aliases=["mmfs", "face stylization", "cartoon", "avatar", "stylegan"],
            inputs=[
                MMFSModelType.Input("model", tooltip="From Load MMFS or MMFS Few-shot."),
                io.Image.Input("image",
                               tooltip="Faces, cut out and upright, of the size that the model was trained with (512 x "
                                       "512 for the published files). A batch or a video's frames are fine."),
                MMFSStyleType.Input("style", tooltip="From MMFS Style (Seed) or MMFS Style (Prompt)."),
                MMFSStyleType.Input("style_b", optional=True, tooltip="A second style, to move towards."),
                io.Float.Input("blend", default=0.0, min=0.0, max=1.0, step=0.05,
                               tooltip="How far the style moves from style to style_b: 0 is style, 1 is style_b. How "
                                       "much of the photo stays is Paste Face's business."),
                io.Combo.Input("noise", options=mmfs.NOISES, default="fixed",
                               tooltip="The fine grain. fixed: the same in every picture, so that a video does not "
                                       "flicker. per image: another one in each. off: none, smoother."),
                seed_input("seed", "Seed of the grain."),
            ],
            outputs=[io.Image.Output("IMAGE", display_name="image", tooltip="The painted faces, as many as came in.")],
        )

    @classmethod
    @in_range
    def execute(cls, model, image, style, blend=0.0, noise="fixed", seed=0, style_b=None) -> io.NodeOutput:
        return io.NodeOutput(mmfs.stylize(model, image, style, style_b, blend, noise, seed, NAME))
