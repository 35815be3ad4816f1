from comfy_api.latest import io

from ..host import training
from ..host.unfinished import check_prefix
from .checks import in_range, verdict
from .types import DIFFSTYLER, seed_input

NAME = training.NODE
MOST_STEPS = 100000


class StyleLoRATrain(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierStyleLoRATrain",
            display_name=NAME,
            category=DIFFSTYLER,
            description="Learns the style of one picture, or of a few, as a small LoRA on the attention of the model. Cancel keeps what is trained so "
                        "far. Save LoRA Weights saves the result, Load LoRA Model and FastSAM Mask Blend take it directly.",
            search_aliases=["diffstyler", "train lora", "style lora", "fine-tune", "textual style"],
            inputs=[
                io.Model.Input("model", tooltip="The model to train for: SD1.5, SD2.1 or SDXL. It stays as it is; a copy is trained. Other LoRAs on it act during "
                                                "training, attention patches do not."),
                io.Vae.Input("vae", tooltip="The VAE of that checkpoint."),
                io.Image.Input("image", tooltip="The style: one picture, or a batch of a few in the same style. At least 64 pixels a side, not transparent."),
                io.Conditioning.Input("caption", tooltip="What the picture shows and a name for its style, from CLIP Text Encode. Use the same words for the style when you "
                                                         "sample."),
                io.Int.Input("rank", default=16, min=1, max=256, tooltip="Size of the LoRA. The paper takes 16."),
                io.Int.Input("steps", default=200, min=2, max=MOST_STEPS, tooltip="Training steps, one noised picture each. The paper takes 200."),
                io.Float.Input("learning_rate", default=2e-4, min=1e-7, max=0.1, step=1e-5, round=1e-7,
                               tooltip="AdamW's learning rate, constant. The paper takes 0.0002."),
                io.Int.Input("resolution", default=512, min=64, max=2048, step=64,
                             tooltip="The picture's short side in training, in pixels: 512 for SD1.5 and SD2.1-base, 1024 for SDXL, 256 for the demo model."),
                seed_input("seed",
                           "Seed of the first weights, of noise and timesteps. The same seed gives the same LoRA."),
                io.Combo.Input("augment", options=list(training.AUGMENTS), default="none",
                               tooltip="flip: mirrors the picture half of the time. crop: shows windows of three quarters of each side. Both keep the LoRA from "
                                       "learning the composition; the paper uses none."),
                io.Combo.Input("targets", options=list(training.TARGETS), default="qkv", advanced=True,
                               tooltip="Which projections of every attention are trained: queries, keys and values as in the paper, or the output projection as "
                                       "well, as in the published code."),
                io.Boolean.Input("checkpointing", default=True, advanced=True,
                                 tooltip="Gradient checkpointing: takes less memory and about a third more time. The result is the same."),
                io.String.Input("cancel_prefix", default="loras/style_lora_unfinished", advanced=True,
                                tooltip="Where in the output folder an unfinished LoRA is kept when you cancel or training fails. Load LoRA finds what lies in "
                                        "output/loras."),
            ],
            outputs=[
                io.LoraModel.Output("lora", display_name="lora", tooltip="The style LoRA, for Save LoRA Weights, Load LoRA Model or FastSAM Mask Blend."),
                io.LossMap.Output("loss", display_name="loss_map", tooltip="The loss of every step, for Plot Loss Graph."),
            ],
        )

    @classmethod
    def validate_inputs(cls, cancel_prefix=None) -> bool | str:
        return verdict(NAME, (prefix_works, "cancel_prefix", cancel_prefix))

    @classmethod
    @in_range
    def execute(cls, model, vae, image, caption, rank=16, steps=200, learning_rate=2e-4, resolution=512, seed=0, augment="none", targets="qkv",
                checkpointing=True, cancel_prefix="loras/style_lora_unfinished") -> io.NodeOutput:
        return io.NodeOutput(*training.train_style(
            model, vae, image, caption, rank=rank, steps=steps, learning_rate=learning_rate, targets=targets, resolution=resolution, seed=seed,
            augment=augment, checkpointing=checkpointing, prefix=cancel_prefix))


def prefix_works(node: str, name: str, text: str) -> None:
    check_prefix(text, MOST_STEPS, node)
