"""Recording Consistency Features: one denoiser call of ComfyUI with a listener on the attention layers."""

from functools import partial

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ..attention.blocks import layer_name, select_layers
from ..attention.features import COND, UNCOND, ConsistencyFeatures
from .kit.calls import KEY, layer_of, note_calls
from .kit.latents import OneCall, check_latent, feature_sigma, fingerprint, shared_noise
from .kit.prompts import check_prompt, main_prompt
from .kit.sites import kept_layers
from .kit.transformers import JointAttention, architecture, overridden
from .seac import remove_seac
from .seac_trace import untrace

NODE = "Consistency Feature Extract"


def extract_features(model, latent: torch.Tensor, positive: list, negative: list | None, seed: int, timestep: int,
                     layers: str) -> ConsistencyFeatures:
    """Equations (6) and (7): noises `latent` to `timestep` and records what attention gets there (see `kept_layers`).

    latent: [images, channels, height, width] as from VAE Encode; timestep in [0, 999]. One slot per prompt:
    0 positive, 1 negative. The model stays as it is; upstream patches (LoRA and the like) act, SEAC does not.
    """
    infos = kept_layers(model)
    wanted = select_layers(layers, list(infos))
    if not wanted:
        raise ValueError(f"'layers' of {NODE} names no layer. Use 'auto'.")
    latent = check_latent(model, latent, NODE)
    conds = {}
    for name, prompt in (("positive", positive), ("negative", negative)):
        if name == "positive" or prompt is not None:
            check_prompt(model, prompt, f"'{name}' of {NODE}")
            conds[name] = main_prompt(prompt, name, NODE)
    comfy.model_management.throw_exception_if_processing_interrupted()

    clone = model.clone()
    remove_seac(clone)
    untrace(clone)
    record = Recorder(frozenset(wanted), clone.offload_device)
    note_calls(clone)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, f"{KEY}.extract", record.listen)
    sigma = feature_sigma(clone.get_model_object("model_sampling"), timestep)
    guider = OneCall(clone)
    guider.inner_set_conds(conds)
    guider.sample(shared_noise(latent.shape, seed), latent, comfy.samplers.sampler_object("euler"),
                  torch.cat([sigma, torch.zeros(1)]), disable_pbar=True, seed=seed)

    missed = next((layer for layer in wanted if layer not in record.grids), None)
    if missed is not None:
        raise ValueError(f"{NODE}: the model call never reached the attention of layer "
                         f"{layer_name(missed, list(infos))}. Another node on this model replaces or skips it: leave "
                         "the layer out of 'layers', or connect the model from before that node.")
    features = {slot: {layer: record.features[slot][layer] for layer in wanted} for slot in range(len(conds))}
    for bank in features.values():
        for layer, values in bank.items():
            if not torch.isfinite(values).all():
                raise ValueError(f"The features of layer {layer_name(layer, list(infos))} hold NaN or infinite values. The model overflows: "
                                 "run it in bf16 or fp32, or check the latent and the prompt.")
    return ConsistencyFeatures(features, {layer: record.grids[layer] for layer in wanted}, timestep, seed,
                               *fingerprint(model))


class Recorder:
    """Collects what a bank keeps per prompt and layer, [images, tokens, channels], during one run."""

    def __init__(self, layers, device):
        self.layers, self.device = layers, device
        self.features, self.grids = {COND: {}, UNCOND: {}}, {}

    def listen(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        call, patches = transformer_options[KEY], transformer_options.get("patches", {})
        if architecture(call.model.diffusion_model) is not None:
            joint = JointAttention(call, transformer_options, partial(self.record_joint, call))
            options = overridden(call, transformer_options, joint)
        else:
            # first, so that it sees what the model made
            first = {"attn1_patch": [self.record, *patches.get("attn1_patch", [])]}
            options = {**transformer_options, "patches": {**patches, **first}}
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    @torch.compiler.disable
    def record(self, n, context, value, extra):
        # The context, not n: token-merging and tiling patches change n.
        layer = layer_of(extra)
        if layer in self.layers:
            self.keep(extra[KEY].texts, layer, tuple(extra["activations_shape"][-2:]), context)
        return n, context, value

    def record_joint(self, call, site, attention, q, k, v, mask) -> None:
        if site.layer in self.layers:
            self.keep(call.texts, site.layer, site.grid, site.stored(k, v))

    def keep(self, slots, layer, grid, tokens) -> None:
        self.grids[layer] = grid
        for slot, rows in zip(slots, tokens.chunk(len(slots))):
            self.features[slot][layer] = rows.to(self.device, copy=True)
