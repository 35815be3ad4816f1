from comfy_api.latest import io

from ..host import mmfs_few_shot
from ..host.mmfs_few_shot import DEFAULTS
from .checks import in_range
from .types import MMFS, GuidanceType, MMFSModelType, seed_input


class MMFSFewShot(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSFewShot",
            display_name=mmfs_few_shot.NODE,
            category=MMFS,
            description="Trains the stylizer's decoder for one style, that of a picture (one-shot) or of a text "
            "(zero-shot). Cancel keeps what is trained so far in output/mmfs.",
            search_aliases=["mmfs", "one-shot", "zero-shot", "fine-tune", "train", "style"],
            inputs=[
                MMFSModelType.Input("model", tooltip="From Load MMFS, of a phase 3 or 4 file. It stays as it is."),
                GuidanceType.Input("guidance", tooltip="From CLIP Similarity Loader, with DINO chosen there."),
                io.Image.Input("photos",
                               tooltip="Photos of faces, cut out and upright: 16 or more of different people. With "
                                       "fewer the model may learn them by heart."),
                io.Image.Input("style_image", optional=True,
                               tooltip="One stylized face, cut out like the photos. Leave text empty then."),
                io.String.Input("text", default="", multiline=True,
                                tooltip="Words for a style, such as 'pop art', in place of a picture. CLIP reads 77 "
                                        "tokens."),
                io.Int.Input("steps", default=DEFAULTS["steps"], min=1, max=10000, tooltip="Training steps: 200."),
                io.Float.Input("lr", default=DEFAULTS["rate"], min=1e-7, max=0.1, step=1e-5, round=1e-7,
                               tooltip="Adam's learning rate. The paper takes 0.0002."),
                seed_input("seed", "Seed of the order of the photos and of the noise."),
                io.Int.Input("batch", default=DEFAULTS["batch"], min=1, max=64, advanced=True,
                             tooltip="Photos in a step. The paper takes 8."),
                io.Int.Input("micro_batch", default=DEFAULTS["micro_batch"], min=1, max=64, advanced=True,
                             tooltip="Photos in memory at once. More takes more memory and may be faster; the result "
                                     "is the same."),
                io.Float.Input("structure", default=DEFAULTS["structure"], min=0.0, max=1000.0, step=0.5, advanced=True,
                               tooltip="Weight of DINO's structure: more keeps the face closer to the photo."),
                io.Float.Input("clip", default=DEFAULTS["clip"], min=0.0, max=1000.0, step=0.1, advanced=True,
                               tooltip="Weight of the direction in CLIP's space: more goes further towards the style."),
                io.Float.Input("projection", default=DEFAULTS["projection"], min=0.0, max=10000.0, step=10.0,
                               advanced=True,
                               tooltip="Weight of the projection loss, which takes details of the style picture; with "
                                       "a text it does nothing."),
                io.Boolean.Input("style_jitter", default=DEFAULTS["style_jitter"], advanced=True,
                                 tooltip="Leaves the mapper's dropout on, as the published code does: the style "
                                         "trembles in training."),
            ],
            outputs=[
                MMFSModelType.Output("model", display_name="model", tooltip="The stylizer that has learnt the style."),
                io.LossMap.Output("loss", display_name="loss_map",
                                  tooltip="The loss of every step and its parts, for Plot Loss Graph."),
            ],
        )

    @classmethod
    @in_range
    def execute(cls, model, guidance, photos, text="", steps=DEFAULTS["steps"], lr=DEFAULTS["rate"], seed=0,
                batch=DEFAULTS["batch"], micro_batch=DEFAULTS["micro_batch"], structure=DEFAULTS["structure"],
                clip=DEFAULTS["clip"], projection=DEFAULTS["projection"], style_jitter=DEFAULTS["style_jitter"],
                style_image=None) -> io.NodeOutput:
        settings = mmfs_few_shot.settings(steps=steps, rate=lr, batch=batch, micro_batch=micro_batch,
                                          structure=structure, clip=clip, projection=projection,
                                          style_jitter=style_jitter)
        return io.NodeOutput(*mmfs_few_shot.train(model, guidance, photos, style_image, text, seed, settings))
