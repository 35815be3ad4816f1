from comfy_api.latest import io

from ..attention.injection import PRESETS, impossible
from ..host.cross_injection import cross_injection
from .checks import in_range, verdict
from .types import DIFFSTYLER, BranchesType, TrajectoryType

NAME = "LoRA Cross-Injection"
BACKGROUNDS = ("auto", "source", "base")


class LoRACrossInjection(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierLoRACrossInjection",
            display_name=NAME,
            category=DIFFSTYLER,
            description="DiffStyler: restyles the source picture with style LoRAs, each in its region, while features and attention of the "
                        "source's own denoising keep shape and identity. Everything for SamplerCustomAdvanced, with Disable Noise.",
            search_aliases=["diffstyler", "style transfer", "regional style", "feature injection", "plug and play"],
            inputs=[
                io.Model.Input("model", tooltip="The model of the source trajectory. Its own LoRAs stay; the styles' LoRAs are not loaded into it."),
                TrajectoryType.Input("source", tooltip="The picture to restyle, from Source Trajectory. Its steps and sigmas are those of the sampling."),
                BranchesType.Input("branches", tooltip="Styles with their regions, from FastSAM Mask Blend."),
                io.Conditioning.Input("negative", tooltip="Negative prompt of all styles. The published one is 'ugly, blurry, black, low res, unrealistic'."),
                io.Conditioning.Input("base_prompt", optional=True,
                                      tooltip="Prompt of the base model where no mask is, for background base. The source's empty prompt if not connected."),
                io.Combo.Input("preset", options=list(PRESETS), default="paper",
                               tooltip="paper: one source row of the base model serves all styles. reference: what the published code does, with a source row per "
                                       "style and hard masks."),
                io.Float.Input("cfg", default=10.5, min=0.0, max=100.0, step=0.1, round=0.01,
                               tooltip="Guidance of every style. 10.5 is the published value; 1 leaves out the negative prompt and its cost."),
                io.Int.Input("feature_until", default=401, min=0, max=1000,
                             tooltip="Features are injected while the timestep is at least this. 401 is the paper's 30 of 50 steps; 1000 is never, 0 always."),
                io.Int.Input("attention_until", default=501, min=0, max=1000,
                             tooltip="Attention is injected while the timestep is at least this. 501 is the paper's 25 of 50 steps; 1000 is never, 0 always."),
                io.Combo.Input("background", options=list(BACKGROUNDS), default="auto",
                               tooltip="Outside all masks. source: the picture stays exactly as it was. base: the base model denoises it anew. auto: source in preset "
                                       "paper, base in reference."),
                io.String.Input("layers", default="auto", advanced=True,
                                tooltip="What is injected where: auto, or for example f=4-11;sa=3-11;ca=3-11 (features, self-attention, cross-attention by decoder "
                                        "block). Parts left out are off; an empty text switches injection off."),
                io.Int.Input("rows_per_forward", default=0, min=0, max=1024, advanced=True,
                             tooltip="Most rows of one model call, to save memory; the result is the same. 0 takes as many as fit."),
            ],
            outputs=[
                io.Guider.Output(tooltip="For SamplerCustomAdvanced."),
                io.Sampler.Output(tooltip="The sampler that belongs to this guider, for SamplerCustomAdvanced."),
                io.Sigmas.Output(tooltip="The source trajectory's sigmas, for SamplerCustomAdvanced."),
                io.Latent.Output(tooltip="The source's latent, for SamplerCustomAdvanced. Sampling starts from the recorded trajectory."),
                io.Mask.Output(tooltip="What the styles cover, in pixels: for pasting the result onto the source picture, as VAE Decode changes it a little everywhere."),
            ],
        )

    @classmethod
    def validate_inputs(cls, layers=None) -> bool | str:
        return verdict(NAME, (sites, "layers", layers))

    @classmethod
    @in_range
    def execute(cls, model, source, branches, negative, base_prompt=None, preset="paper", cfg=10.5, feature_until=401, attention_until=501,
                background="auto", layers="auto", rows_per_forward=0) -> io.NodeOutput:
        return io.NodeOutput(*cross_injection(
            model, source, branches, negative, base_prompt, preset=preset, cfg=cfg, feature_until=feature_until, attention_until=attention_until,
            background=background, layers=layers, rows_per_forward=rows_per_forward))


def sites(node: str, name: str, text: str) -> None:
    """Raises ValueError for a text that names places of no model; whether this model has them, only a run can tell."""
    wrong = impossible(text)
    if wrong is not None:
        raise ValueError(f"'{name}' of {node} is '{text}', where '{wrong}' is not understood. Write auto, or for example "
                         "f=4-11;sa=3-11;ca=3-11: f features, sa self-attention, ca cross-attention, each with decoder blocks.")
