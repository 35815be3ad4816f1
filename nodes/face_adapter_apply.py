from comfy_api.latest import io

from ..host.face_adapter import NODE, patched
from .checks import in_range
from .types import FASTFACE, FaceAdapterType, FaceIdentityType


class FaceAdapterApply(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFaceAdapterApply",
            display_name=NODE,
            category=FASTFACE,
            description="Lets the model draw a person: adds the cross-attention of an IP-Adapter FaceID model, and the LoRA in its file. "
                        "Several of these nodes in a row add several people or adapters.",
            search_aliases=["ipadapter", "faceid", "identity", "face", "fastface"],
            inputs=[
                io.Model.Input("model", tooltip="The SD1.5 or SDXL model that samples, the family the adapter was made for."),
                FaceAdapterType.Input("adapter", tooltip="From Face Adapter Loader."),
                FaceIdentityType.Input("identity", tooltip="From Face Identity Encode. Where no face was found and that node was told to skip, "
                                                           "the model stays as it is."),
                io.Mask.Input("mask", optional=True, tooltip="Where in the sampled picture the person may appear. The LoRA acts everywhere. "
                                                             "A batch of masks goes with a batch of pictures."),
                io.Float.Input("weight", default=0.8, min=0.0, max=3.0, step=0.05,
                               tooltip="How strongly attention to the person is added, the paper's lambda. 0 with lora_strength 0 leaves the "
                                       "model untouched."),
                io.Float.Input("lora_strength", default=1.0, min=0.0, max=2.0, step=0.05,
                               tooltip="Strength of the LoRA in the adapter's file. 1 is how it was trained; the paper also uses 0.5, which "
                                       "leaves the prompt more room and loses the face more often."),
                io.Float.Input("shortcut", default=1.0, min=0.0, max=3.0, step=0.05,
                               tooltip="FaceID-Plus v2 only: weight of what CLIP saw of the face beside the recognised identity."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the full noise schedule at which the attention begins. The LoRA always acts."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the full noise schedule at which the attention ends."),
                io.Boolean.Input("skip_middle", default=False, advanced=True,
                                 tooltip="Leave the UNet's middle block alone, as IPAdapter_plus does without saying so. Off is how the adapters "
                                         "were trained."),
            ],
            outputs=[io.Model.Output("patched_model", display_name="model",
                                     tooltip="The model with the person, for the sampler, Decoupled CFG or the attention nodes. "
                                             "The input model stays as it is.")],
        )

    @classmethod
    @in_range
    def execute(cls, model, adapter, identity, mask=None, weight=0.8, lora_strength=1.0, shortcut=1.0, start=0.0, end=1.0,
                skip_middle=False) -> io.NodeOutput:
        return io.NodeOutput(patched(model, adapter, identity, weight=weight, lora_strength=lora_strength, shortcut=shortcut, start=start,
                                     end=end, mask=mask, skip_middle=skip_middle))
