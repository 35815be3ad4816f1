"""Recording Consistency Features: one denoiser call of ComfyUI with a listener on the self-attention layers."""

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ..attention.blocks import layer_name, select_layers
from ..attention.features import COND, UNCOND, ConsistencyFeatures
from .log import log
from .patching import prepend_patch
from .prompts import check_prompt
from .seac import remove_seac
from .unet import attention_layers, family

KEY = "portrait_atelier.extract"
# A conditioning entry with one of these speaks of a part of the picture, of the schedule, or of another model.
PARTIAL = ("area", "mask", "start_percent", "end_percent", "control", "gligen", "default")


class OneCall(comfy.samplers.CFGGuider):
    """Evaluates every prompt once, without guidance."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        conds = [self.conds[name] for name in self.original_conds]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[0]


def shared_noise(shape: torch.Size, seed: int) -> torch.Tensor:
    """The epsilon of equation (6): one draw per (seed, picture size), the same for every picture of the batch.

    Source and reference of equal size therefore share it across nodes too. shape: [images, channels, ...].
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, *shape[1:], generator=generator)
    return noise.expand(shape)


def feature_sigma(model_sampling, timestep: int) -> torch.Tensor:
    """sigma of the timestep: sqrt((1 - alpha_bar) / alpha_bar), so that ComfyUI's noising is equation (6).

    Models with a continuous schedule have no such table; they get that of Stable Diffusion.
    """
    if not isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscrete):
        model_sampling = comfy.model_sampling.ModelSamplingDiscrete()
    return model_sampling.sigma(torch.tensor([float(timestep)])).float().cpu()


def main_prompt(conditioning: list, name: str) -> list:
    """The first entry that speaks of the whole picture at all times; conditioning hooks stay."""
    whole = [entry for entry in conditioning if not any(entry[1].get(key) is not None for key in PARTIAL)]
    if whole:
        return whole[:1]
    log.warning("Consistency Feature Extract: every entry of '%s' has an area, mask, time range, ControlNet or GLIGEN; "
                "the first one is used without it.", name)
    embedding, options = conditioning[0]
    return [[embedding, {key: value for key, value in options.items() if key not in PARTIAL}]]


def check_latent(model, latent: torch.Tensor, node: str = "Consistency Feature Extract") -> None:
    """Raises ValueError for a latent that holds no picture or does not belong to this model."""
    channels = model.model.latent_format.latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(f"The latent has shape {tuple(latent.shape)}, but {family(model)} takes [images, {channels}, height, "
                         "width]. Encode the picture with the VAE of this checkpoint.")
    if latent.numel() == 0 or not latent.any():
        raise ValueError(f"The latent of {node} is empty. Connect a VAE Encode of the picture instead of an empty latent.")
    if not torch.isfinite(latent).all():
        raise ValueError(f"The latent of {node} holds NaN or infinite values. Look at the picture and the VAE "
                         "(a half-precision VAE may overflow).")


def extract_features(model, latent: torch.Tensor, positive: list, negative: list | None, seed: int, timestep: int,
                     layers: str) -> ConsistencyFeatures:
    """Equations (6) and (7): noises `latent` to `timestep` and records the inputs of self-attention.

    latent: [images, channels, height, width] as from VAE Encode; timestep in [0, 999]. One slot per prompt:
    0 positive, 1 negative. The model stays as it is; upstream patches (LoRA and the like) act, SEAC does not.
    """
    infos = attention_layers(model)
    wanted = select_layers(layers, list(infos))
    if not wanted:
        raise ValueError("'layers' of Consistency Feature Extract names no layer. Use 'auto'.")
    check_latent(model, latent)
    conds = {}
    for name, prompt in (("positive", positive), ("negative", negative)):
        if name == "positive" or prompt is not None:
            check_prompt(model, prompt, f"'{name}' of Consistency Feature Extract")
            conds[name] = main_prompt(prompt, name)
    comfy.model_management.throw_exception_if_processing_interrupted()

    clone = model.clone()
    remove_seac(clone)
    record = Recorder(frozenset(wanted), clone.offload_device)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, record.listen)
    sigma = feature_sigma(clone.get_model_object("model_sampling"), timestep)
    guider = OneCall(clone)
    guider.inner_set_conds(conds)
    guider.sample(shared_noise(latent.shape, seed), latent, comfy.samplers.sampler_object("euler"),
                  torch.cat([sigma, torch.zeros(1)]), disable_pbar=True, seed=seed)

    features = {slot: {layer: record.features[slot][layer] for layer in wanted} for slot in range(len(conds))}
    for bank in features.values():
        for layer, values in bank.items():
            if not torch.isfinite(values).all():
                raise ValueError(f"The features of layer {layer_name(layer, list(infos))} hold NaN or infinite values. The model overflows: "
                                 "run it in bf16 or fp32, or check the latent and the prompt.")
    return ConsistencyFeatures(features, {layer: record.grids[layer] for layer in wanted}, timestep, seed,
                               family(model), (model.clone_base_uuid, model.patches_uuid))


class Recorder:
    """Collects the inputs of self-attention per prompt and layer, [images, tokens, channels], during one run."""

    def __init__(self, layers, device):
        self.layers, self.device = layers, device
        self.features, self.grids = {COND: {}, UNCOND: {}}, {}

    def listen(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        options = prepend_patch(transformer_options, "attn1_patch", self.record)
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    @torch.compiler.disable
    def record(self, n, context, value, extra):
        # The context, not n: token-merging and tiling patches change n.
        layer = (*extra["block"], extra["block_index"])
        if layer in self.layers:
            slots = extra["cond_or_uncond"]
            self.grids[layer] = tuple(extra["activations_shape"][-2:])
            for slot, rows in zip(slots, context.chunk(len(slots))):
                self.features[slot][layer] = rows.to(self.device, copy=True)
        return n, context, value
