import json

from comfy_api.latest import io, ui

from ..segmentation import prompts
from .types import FASTSAM

NAME = "Pick Points"


class PickPoints(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierPickPoints",
            display_name=NAME,
            category=FASTSAM,
            description="Shows a picture and takes points by clicking: left includes, right excludes. For FastSAM Mask in mode points; "
                        "ComfyUI's SAM3 Detect takes them too.",
            search_aliases=["points", "click", "coordinates", "point editor", "sam"],
            inputs=[
                io.Image.Input("image", tooltip="The picture to click on: the one that goes into FastSAM Segment, of the same size."),
                io.String.Input("points", default="",
                                tooltip=f"Pixels x,y of the picture, such as {prompts.SIGNED}: + includes, - excludes. Clicks on the "
                                        "picture write them here."),
            ],
            outputs=[
                io.String.Output("positive", display_name="positive", tooltip=f"The points to include, as {prompts.FORM}."),
                io.String.Output("negative", display_name="negative", tooltip="The points to exclude, in the same form."),
            ],
            is_output_node=True,  # so that it can be run alone, to see a picture that other nodes make
        )

    @classmethod
    def validate_inputs(cls, points=None):
        try:
            prompts.parse_signed(points or "")  # None: linked, not known yet
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, image, points="") -> io.NodeOutput:
        height, width = image.shape[1:3]
        chosen = prompts.parse_signed(points)
        for _, x, y in chosen:
            prompts.check_inside(x, y, height, width, f"'points' of {NAME}")
        positive, negative = (json.dumps([{"x": x, "y": y} for sign, x, y in chosen if sign == exclude]) for exclude in (False, True))
        # not as "images": the widget shows it, the editor need not show it once more
        return io.NodeOutput(positive, negative, ui={"picture": ui.PreviewImage(image[:1, ..., :3]).values})
