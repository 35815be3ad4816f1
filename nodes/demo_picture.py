"""A picture that ships with the pack, or one of the user's own."""

from comfy_api.latest import io

from ..host import pictures


class DemoPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierDemoPicture",
            display_name="Demo Picture",
            category="Portrait Atelier/Demo",
            description="A picture that ships with the pack, or one of your own: the list offers both, and the button "
            "uploads. It gives what Load Image gives.",
            search_aliases=["load image", "upload", "portrait", "example picture"],
            inputs=[
                io.Combo.Input(
                    "image",
                    options=pictures.names(),
                    default=pictures.DEFAULT,
                    upload=io.UploadType.image,
                    tooltip="atelier/... are the shipped portraits, drawn by the demo's renderer; below them the "
                    "pictures of ComfyUI's input folder.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The picture."),
                io.Mask.Output(
                    tooltip="What the picture's transparency hides, as the mask editor paints it: 1 where it is "
                    "transparent."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, image=None):
        return (image and pictures.problem(image)) or True  # None: linked, told at the run

    @classmethod
    def fingerprint_inputs(cls, image=None):
        return image and pictures.fingerprint(image)

    @classmethod
    def execute(cls, image) -> io.NodeOutput:
        return io.NodeOutput(*pictures.load(image))
