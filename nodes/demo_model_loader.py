"""The microworld's model as ordinary MODEL, CLIP and VAE."""

from comfy_api.latest import io

from ..demo import checkpoint, text
from ..host import demo_model


class DemoModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierDemoModelLoader",
            display_name="Demo Model Loader",
            category="Portrait Atelier/Demo",
            description="Loads the tiny model that ships with the pack: procedural portraits of 256 x 256 pixels, drawn in four LCM steps. "
                        "It needs no download and stands in for a checkpoint loader; it knows nothing of photographs.",
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The tiny diffusion model (epsilon-prediction, SD1.5's block layout, 16 latent channels). Use ModelSamplingDiscrete 'lcm' and KSampler 'lcm', 'simple', 4 steps."),
                io.Clip.Output(tooltip="A text encoder of phrases such as 'portrait, watercolor, red hair, glasses'. Unknown words are ignored and logged."),
                io.Vae.Output(tooltip="The codec of the tiny model. Pictures of 256 x 256 pixels suit it; sides are cut to multiples of 16."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        world = checkpoint.load()
        model = demo_model.model(world.unet, world.scale, *world.codec.preview())
        return io.NodeOutput(model, demo_model.clip(world.text, text.tokenize, text.LENGTH), demo_model.vae(world.codec))
