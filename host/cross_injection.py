"""LoRA Cross-Injection, DiffStyler's sampling: a guider that makes one packed UNet call per step, and its sampler.

`Job` is what the node fixed; nothing is written to it. All per-run state lives in the guider between the beginning of a run and
its end, and the model carries hooks only in between.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management
import comfy.samplers
import torch
import torch.nn.functional as F

from ..attention import injection
from ..attention.features import COND, UNCOND
from ..attention.masks import mask_on_grid
from ..guidance import regions
from ..segmentation.masks import checked
from .adapters import low_rank_pairs
from .kit.latents import fingerprint
from .kit.prompts import one_prompt
from .kit.sites import attention_layers
from .log import log
from .routed import Lora, Routed, decoder, injected_modules
from .trajectory import Trajectory, timesteps_of

NODE = "LoRA Cross-Injection"


@dataclass(frozen=True, eq=False)
class Branch:
    """One style: its prompt, where it acts ([images, height, width], None is everywhere), its LoRA's tensors (None is none)."""

    prompt: list
    mask: torch.Tensor | None
    lora: dict[str, torch.Tensor] | None
    name: str
    strength: float


@dataclass(frozen=True, eq=False)
class Job:
    """What one LoRA Cross-Injection node does. weights: [styles, h, w] and outside: [h, w] by equation (8)."""

    source: Trajectory
    preset: str
    base: bool
    feature_until: int
    attention_until: int
    rows_per_forward: int
    sites: injection.Sites
    kinds: dict[str, str]
    loras: dict[int, Lora]
    weights: torch.Tensor
    outside: torch.Tensor


def cross_injection(model, source: Trajectory, branches: Sequence[Branch], negative: list, base_prompt: list | None, *, preset: str,
                    cfg: float, feature_until: int, attention_until: int, background: str, layers: str, rows_per_forward: int):
    """-> guider, sampler, sigmas, latent, mask 1 - w_0 as [1, H, W] in pixels: equations (4) to (7), or (12) on "shared noise".

    background: "source" keeps what no mask covers bit for bit, "base" denoises it with the base model and `base_prompt` (the
    trajectory's prompt if None), "auto" is source in preset "paper" and base in "reference". Raises ValueError for what does
    not fit.
    """
    attentions = attention_layers(model)
    check_source(model, source)
    height, width = source.original.shape[-2:]
    masks = torch.stack([latent_mask(branch.mask, (height, width), preset, number) for number, branch in enumerate(branches, 1)])
    weights, outside = regions.region_weights(masks)
    count, upsampled = decoder(model)
    sites = injection.parse_sites(layers, preset, list(attentions), count, upsampled)
    kinds = injected_modules(model.model, sites)
    # The published code's own attention function leaves out the LoRA where self-attention is injected.
    silent = {name.rsplit(".", 1)[0] for name, kind in kinds.items() if kind == "sa"} if preset == "reference" else set()
    loras = {}
    for number, branch in enumerate(branches, 1):
        if branch.lora is not None and branch.strength != 0:
            pairs = low_rank_pairs(model, branch.lora, branch.name)
            pairs = {name: pair for name, pair in pairs.items() if not any(name.startswith(prefix + ".") for prefix in silent)}
            loras[number] = Lora(pairs, branch.strength)
    base = background == "base" or (background == "auto" and preset == "reference")
    job = Job(source, preset, base, feature_until, attention_until, rows_per_forward, sites, kinds, loras, weights, outside)
    guider = CrossInjection(model, job)
    prompts = {injection.SOURCE: source.prompt, injection.NEGATIVE: one_prompt(model, negative, "negative", NODE)}
    prompts |= {str(number): one_prompt(model, branch.prompt, f"prompt of style {number}", NODE) for number, branch in enumerate(branches, 1)}
    if base:
        prompts[injection.BASE] = source.prompt if base_prompt is None else one_prompt(model, base_prompt, "base_prompt", NODE)
    guider.inner_set_conds(prompts)
    guider.set_cfg(cfg)
    scale = model.model.latent_format.spacial_downscale_ratio
    mask = F.interpolate((1 - outside)[None, None], scale_factor=scale, mode="nearest-exact")[0]
    return guider, comfy.samplers.KSAMPLER(guider.walk), source.sigmas.clone(), {"samples": source.original.clone()}, mask


def check_source(model, source: Trajectory) -> None:
    """Raises ValueError when the trajectory was made with other weights or another noise schedule than the model's."""
    kind, weights = fingerprint(model)
    if (kind, weights) != (source.family, source.weights_id):
        other = kind if kind != source.family else f"{kind} with other weights or LoRAs"
        raise ValueError(f"{NODE}: the source trajectory was made with a model of family {source.family}, but this model is {other}. "
                         "Connect the same MODEL to Source Trajectory and here; styles' LoRAs go to FastSAM Mask Blend.")
    timesteps = timesteps_of(model.get_model_object("model_sampling"), source.sigmas)
    if timesteps != source.timesteps:
        raise ValueError(f"{NODE}: the source trajectory was made on a grid of timesteps {shortened(source.timesteps)}, which this model's "
                         f"sampling reads as {shortened(timesteps)}. Put ModelSamplingDiscrete before both nodes or before none.")


def shortened(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) < 6 else f"{numbers[0]}, {numbers[1]} ... {numbers[-1]}"


def latent_mask(mask: torch.Tensor | None, size: tuple[int, int], preset: str, number: int) -> torch.Tensor:
    """A picture mask at latent size, [h, w] in [0, 1]: averaged over cells and soft; in preset "reference" 1 where bilinear resizing
    leaves anything. Several masks are united. Raises ValueError for a mask of another shape.
    """
    if mask is None:
        return torch.ones(size)
    mask = checked(mask, size, f"The mask of style {number} of {NODE}").amax(0, keepdim=True)
    if preset == "reference":
        return (F.interpolate(mask[None], size, mode="bilinear")[0, 0] > 0).float()
    return mask_on_grid(mask, size).view(size)


class CrossInjection(comfy.samplers.CFGGuider):
    """One packed UNet call per step for all styles and the source, guidance per style, one mixed prediction."""

    def __init__(self, model, job: Job):
        super().__init__(model)
        self.job, self.step = job, None

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None):
        source = self.job.source
        if denoise_mask is not None:
            raise ValueError(f"The latent for {NODE} carries a noise mask. Connect masks to FastSAM Mask Blend.")
        if latent_image.shape != source.original.shape:
            raise ValueError(f"The latent has shape {tuple(latent_image.shape)}, but the source of {NODE} {tuple(source.original.shape)}. "
                             "Connect that node's latent to the sampler.")
        if not torch.equal(sigmas.cpu().float(), source.sigmas):
            raise ValueError(f"The source trajectory was made for {len(source.sigmas) - 1} steps, timesteps {shortened(source.timesteps)}, and the "
                             f"sampler runs {len(sigmas) - 1} other ones. Connect the sigmas of {NODE} to the sampler.")
        if torch.any(noise):
            log.warning("%s starts from the recorded trajectory; the sampler's noise is not used. Connect Disable Noise.", NODE)
        out = super().sample(torch.zeros_like(noise), latent_image, sampler, sigmas, None, callback, disable_pbar, seed)
        if self.job.base:
            return out
        # Scaling latents in and out is not bit-exact.
        return torch.where(self.job.outside.to(out.device) == 1, source.original.to(out), out)

    def inner_sample(self, noise, latent_image, device, *args, **kwargs):
        if "sampler_calc_cond_batch_function" in self.model_options:
            raise ValueError(f"{NODE} packs its own model calls and cannot run with a node that replaces them (decoupled guidance?). "
                             "Connect the model from before that node.")
        job = self.job
        self.weights, self.outside = job.weights.to(device), job.outside.to(device)
        try:
            with Routed(self.inner_model, job.loras, job.kinds) as self.routed:
                return super().inner_sample(noise, latent_image, device, *args, **kwargs)
        finally:
            self.routed = self.weights = self.outside = self.step = self.source_x = None

    def walk(self, denoise, x, sigmas, extra_args, callback, disable):
        """The sampler, a k-diffusion function: Euler steps in sigma from the recorded start, the outside put back each time."""
        source, total = self.job.source, len(sigmas) - 1
        outside = torch.zeros_like(self.outside) if self.job.base else self.outside
        x = source.at(0, x.device)
        for step in range(total):
            self.step, self.source_x = step, source.at(step, x.device)
            denoised = denoise(x, sigmas[step:step + 1], **extra_args)
            if not torch.isfinite(denoised).all():
                raise ValueError(f"{NODE}: the latent of step {step + 1} of {total} holds NaN or infinite values. Run the model in bf16 or "
                                 "fp32, or lower cfg or a LoRA's strength.")
            if callback is not None:
                callback({"i": step, "denoised": denoised, "x": x, "sigma": sigmas[step], "sigma_hat": sigmas[step]})
            if source.shared:
                x = denoised if step + 1 == total else source.noised(denoised, step + 1)
            else:
                x = regions.euler_step(x, denoised, sigmas[step], sigmas[step + 1])
                x = regions.keep_outside(x, source.at(step + 1, x.device), outside)
        return x

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        """The mixed prediction of z_0, [1, C, h, w]: (7) or (9); on "shared noise" the next x_0 by (12)."""
        job = self.job
        if self.step is None:
            raise ValueError(f"{NODE} needs its own sampler. Connect its sampler output to SamplerCustomAdvanced.")
        guided = not math.isclose(self.cfg, 1) or model_options.get("disable_cfg1_optimization", False)
        rows = injection.step_rows(
            job.source.timesteps[self.step], len(job.weights), job.sites, preset=job.preset, feature_until=job.feature_until,
            attention_until=job.attention_until, guided=guided, base=job.base, keep_source=job.source.shared)
        told = self.predictions(rows, x, timestep, model_options)

        def guide(branch: int):
            prompt = injection.BASE if branch == 0 else str(branch)
            positive, negative = told[prompt, branch], told.get((injection.NEGATIVE, branch))
            if negative is None:
                negative = torch.zeros_like(positive)
            conds, outs = [self.conds[prompt], self.conds[injection.NEGATIVE]], [positive, negative]
            for function in model_options.get("sampler_pre_cfg_function", []):  # as ComfyUI's own sampling_function
                outs = function({"conds": conds, "conds_out": outs, "cond_scale": self.cfg, "timestep": timestep, "input": x, "sigma": timestep,
                                 "model": self.inner_model, "model_options": model_options})
            return comfy.samplers.cfg_function(self.inner_model, *outs[:2], self.cfg, x, timestep, model_options=model_options, cond=conds[0],
                                               uncond=conds[1])[0]

        styles = torch.stack([guide(number) for number in range(1, len(job.weights) + 1)])
        mixed = regions.mixture(styles, self.weights, self.outside, guide(0) if job.base else None)
        if job.source.shared:
            outside = torch.zeros_like(self.outside) if job.base else self.outside
            mixed = regions.shared_noise_step(mixed, told[injection.SOURCE, 0][0], job.source.latents[-1].to(x), outside)
        return mixed[None]

    def predictions(self, rows, x, timestep, model_options) -> dict[tuple[str, int], torch.Tensor]:
        """Denoised [1, C, h, w] per prompt and branch, from one call or from several with a source row each."""
        told = {}
        for call in injection.split(rows, self.job.rows_per_forward or self.rows_that_fit(rows, x)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            inputs = torch.cat([self.source_x if row.prompt == injection.SOURCE else x for row in call])
            plan = injection.plan(call, frozenset(self.job.loras))
            with self.routed.call(plan):
                out = self.forward(call, inputs, timestep, model_options)
            told |= {(row.prompt, row.branch): out[i:i + 1] for i, row in enumerate(call)}
        return told

    def forward(self, call, inputs, timestep, model_options) -> torch.Tensor:
        """What ComfyUI's own batching of prompts does, with a row of its own input per prompt."""
        conds = [self.conds[row.prompt][0] for row in call]
        packed = comfy.samplers.cond_cat([{key: value.process_cond(batch_size=1, area=None) for key, value in cond["model_conds"].items()}
                                          for cond in conds])
        patcher = self.inner_model.current_patcher
        patcher.prepare_state(timestep, model_options)
        options = dict(model_options["transformer_options"])
        # Other patches know a positive and a negative prompt; the source's empty prompt counts as negative.
        options["cond_or_uncond"] = [UNCOND if row.prompt in (injection.SOURCE, injection.NEGATIVE) else COND for row in call]
        options["uuids"], options["sigmas"] = [cond["uuid"] for cond in conds], timestep
        packed["transformer_options"] = options
        sigmas = timestep.expand(len(call))
        if "model_function_wrapper" in model_options:
            return model_options["model_function_wrapper"](self.inner_model.apply_model, {
                "input": inputs, "timestep": sigmas, "c": packed, "cond_or_uncond": options["cond_or_uncond"]})
        return self.inner_model.apply_model(inputs, sigmas, **packed)

    def rows_that_fit(self, rows, x) -> int:
        """As many rows as ComfyUI's estimate finds memory for, at least a source and one more."""
        free = self.inner_model.current_patcher.get_free_memory(x.device)
        fits = [n for n in range(2, len(rows) + 1) if self.inner_model.memory_required([n, *x.shape[1:]]) * 1.5 < free]
        return max(fits, default=2)
