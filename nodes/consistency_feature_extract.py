from comfy_api.latest import io

from ..host.extract import extract_features
from .checks import in_range, layer_names, verdict
from .types import CATEGORY, MAX_SEED, ConsistencyFeaturesType

NAME = "Consistency Feature Extract"


class ConsistencyFeatureExtract(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierConsistencyFeatureExtract",
            display_name=NAME,
            category=CATEGORY,
            description="Reads a picture's self-attention features from a lightly noised latent in one model call, "
                        "for SEAC Patch. One node per picture: changing a reference re-runs only its own node.",
            search_aliases=["zepo", "style features", "portrait stylization"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample, after its LoRAs: SD1.5, SD2.1, SDXL, or one of the transformers "
                                                "Z-Image, Lumina 2, Flux.1, FLUX.2, Chroma, Qwen-Image, Krea 2, SD3. SEAC Patches on it "
                                                "are ignored here."),
                io.Latent.Input("latent", tooltip="The picture, through VAE Encode. A batch gives features of every picture. "
                                                  "Size and shape need not match the sampled picture's."),
                io.Conditioning.Input("positive", tooltip="The prompt of the sampler. The paper uses the word 'head'. Of several "
                                                          "entries the first for the whole picture counts."),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="The sampler's negative prompt. Needed when CFG is not 1."),
                io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=False,
                             tooltip="Seed of the noise. Source and reference should use the same one: the paper noises both alike."),
                io.Int.Input("timestep", default=99, min=0, max=999,
                             tooltip="How much noise the picture gets before its features are read, 0 none to 999 all; in transformers "
                                     "thousandths of noise. The paper uses 99. LCM models know 19, 39, ... 999 and round to those."),
                io.String.Input("layers", default="auto", advanced=True,
                                tooltip="Attention layers to record: auto (every decoder layer but the first; all of a transformer), "
                                        "all, or a list such as u1-8, d3, m, u0.2-9. d, m and u are encoder, middle and decoder blocks, "
                                        "b0-29 those of a transformer."),
            ],
            outputs=[ConsistencyFeaturesType.Output("consistency_features", display_name="features",
                                                    tooltip="Features for SEAC Patch, or for Token Merge before it.")],
        )

    @classmethod
    def validate_inputs(cls, layers=None) -> bool | str:
        return verdict(NAME, (some_layers, "layers", layers))

    @classmethod
    @in_range
    def execute(cls, model, latent, positive, negative=None, seed=0, timestep=99, layers="auto") -> io.NodeOutput:
        return io.NodeOutput(extract_features(model, latent["samples"], positive, negative, seed, timestep, layers))


def some_layers(node: str, name: str, text: str) -> None:
    if not text.strip(" ,"):
        raise ValueError(f"'{name}' of {node} names no layer. Write auto, which is right unless you know better.")
    layer_names(node, name, text)
