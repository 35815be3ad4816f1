"""Training a style LoRA inside ComfyUI: a private copy of the network, latents, prompt, progress, Cancel, names of a LoRA file.

Nodes run under inference_mode and the weights of a loaded MODEL are inference tensors, which cannot enter a backward pass. So
training works outside that mode on a copy; the MODEL itself is only unloaded for the time, as ComfyUI does with idle models.
"""

import copy

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import latent_preview
import torch
import torch.utils.checkpoint
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

from ..training import style_lora as maths
from .kit.latents import check_latent
from .kit.prompts import one_prompt
from .kit.sites import attention_layers, blocks, family
from .log import log
from .unfinished import check_prefix, keep

NODE = "Style LoRA Train"
TARGETS = {"qkv": ("to_q", "to_k", "to_v"), "qkv+out": ("to_q", "to_k", "to_v", "to_out.0")}
AUGMENTS = {"none": (False, 1.0), "flip": (True, 1.0), "crop": (False, 0.75), "flip and crop": (True, 0.75)}
SMALLEST = 64
PREVIEW_EVERY = 10


def train_style(model, vae, pictures: torch.Tensor, caption: list, *, rank: int, steps: int, learning_rate: float, targets: str, resolution: int,
                seed: int, augment: str, checkpointing: bool, prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """A style LoRA of `pictures`, IMAGE [B, H, W, C]: (LoRA file's tensors, {"loss": one per step, "probe": before and after}).

    What is trained when the run is cancelled or fails is saved in ComfyUI's output folder under `prefix`. Raises ValueError for
    what cannot be trained, and for a prefix under which nothing could be saved.
    """
    attention_layers(model)
    prediction, alphas = schedule(model)
    one_prompt(model, caption, "caption", NODE, "training cannot follow")
    check_prefix(prefix, steps, NODE)
    pictures = opaque(pictures)
    flip, window = AUGMENTS[augment]
    latents = encoded(model, vae, pictures, resolution, flip)
    comfy.model_management.throw_exception_if_processing_interrupted()
    with torch.inference_mode(False):
        network = Network(model, [[latent.clone() for latent in variants] for variants in latents], caption, checkpointing)
        try:
            return _train(network, alphas, prediction, rank, steps, learning_rate, targets, seed, window, prefix)
        finally:
            network.close()


def _train(network, alphas, prediction, rank, steps, learning_rate, targets, seed, window, prefix):
    generator = torch.Generator().manual_seed(seed)
    adapters = maths.Adapters(target_modules(network.inner, targets), rank, generator).to(network.device)
    names = file_names(network.inner, adapters.modules_by_name)
    alphas = alphas.to(network.device)
    probes = maths.probes(network.pictures, len(alphas), seed)
    bar = comfy.utils.ProgressBar(steps)
    previewer = latent_preview.get_previewer(network.device, network.inner.latent_format)
    losses = []

    def preview():
        draw = probes[len(probes) // 2]
        z_t = maths.noised(draw, alphas)
        with torch.no_grad():
            z0 = maths.denoised(z_t, network.predict(z_t, draw.t), alphas[draw.t], prediction)
        return previewer.decode_latent_to_preview_image("JPEG", z0)

    def on_step(step, loss):
        losses.append(loss)
        bar.update_absolute(step, steps, preview() if previewer is not None and step % PREVIEW_EVERY == 0 else None)
        comfy.model_management.throw_exception_if_processing_interrupted()

    with adapters.attached():
        before = maths.probe_loss(network.predict, probes, alphas, prediction)
        try:
            maths.train(network.predict, adapters, network.pictures, alphas, prediction=prediction, steps=steps, learning_rate=learning_rate,
                        window=window, generator=generator, on_step=on_step)
            after = maths.probe_loss(network.predict, probes, alphas, prediction)
        except BaseException:
            if losses:
                keep(lora_file(adapters, names), prefix, len(losses), NODE)
            raise
    log.info("%s: %d steps, %d modules; mean loss at %d fixed noises %.4f before, %.4f after.", NODE, steps, len(names), len(probes), before, after)
    return lora_file(adapters, names), {"loss": losses, "probe": [before, after]}


class Network:
    """A private, loaded copy of a MODEL's network that gradients can pass: pictures [picture][variant] on its device, and `predict`.

    Weight patches of the MODEL (other LoRAs) act in the copy; attention patches, wrappers and hooks do not.
    """

    def __init__(self, model, pictures, caption: list, checkpointing: bool):
        self.patcher = private_copy(model)
        self.inner, self.device = self.patcher.model, self.patcher.load_device
        if checkpointing:
            recompute_blocks(self.inner.diffusion_model)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=1e20, force_full_load=True)
        self.pictures = [[self.inner.process_latent_in(latent.to(self.device, torch.float32)) for latent in variants] for variants in pictures]
        z0 = self.pictures[0][0]
        conds = comfy.sampler_helpers.convert_cond(caption)
        conds = comfy.samplers.encode_model_conds(self.inner.extra_conds, conds, z0, self.device, "positive", latent_image=z0)[0]["model_conds"]
        self.context = self._own(conds["c_crossattn"].cond)
        self.more = {"y": self._own(conds["y"].cond)} if "y" in conds else {}

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, self.inner.get_dtype_inference(), copy=True)

    def predict(self, z_t: torch.Tensor, t: int) -> torch.Tensor:
        """What the network answers to z_t [1, C, h, w] at timestep t, in float32."""
        timesteps = torch.full((len(z_t),), float(t), device=self.device)
        return self.inner.diffusion_model(z_t.to(self.inner.get_dtype_inference()), timesteps, context=self.context,
                                          transformer_options={"optimized_attention_override": _differentiable}, **self.more).float()

    def close(self) -> None:
        """Frees the device's memory."""
        comfy.model_management.unload_model_and_clones(self.patcher)


def _differentiable(attention, *args, **kwargs):
    """Not every attention backend that a user may have chosen knows a backward pass."""
    return attention_pytorch(*args, **kwargs)


def private_copy(model):
    """A ModelPatcher with weights of its own and the weight patches of `model`, whose own weights leave the device.

    To be called outside inference_mode: the new weights are then ordinary tensors. A GPU computes in bf16 where it can, since
    gradients overflow in fp16; the CPU in float32.
    """
    comfy.model_management.unload_model_and_clones(model)
    if model.cached_patcher_init is not None:
        inner = model.clone(disable_dynamic=True, force_deepcopy=True).model
    else:  # not from one of ComfyUI's own loaders; the memo says what is not copied: the configuration, which knows no copying, and the ModelPatcher
        config, patcher = model.model.model_config, model.model.current_patcher
        inner = copy.deepcopy(model.model, {id(config): config, id(patcher): None})
    inner.requires_grad_(False).eval()
    copied = comfy.model_patcher.ModelPatcher(inner, model.load_device, model.offload_device)
    copied.patches = {name: list(patches) for name, patches in model.patches.items()}
    copied.set_model_compute_dtype(torch.bfloat16 if comfy.model_management.should_use_bf16(model.load_device) else torch.float32)
    return copied


def recompute_blocks(unet) -> None:
    """Gradient checkpointing: residual blocks and transformers of a private UNet keep their inputs and run again for the backward pass."""
    for block in unet.modules():
        if isinstance(block, (ResBlock, SpatialTransformer)):
            block.forward = _recomputed(block.forward)


def _recomputed(forward):
    return lambda *args, **kwargs: torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)


def schedule(model) -> tuple[str, torch.Tensor]:
    """How the model predicts ("epsilon" or "v"), and alpha_bar of its timesteps, [1000].

    Raises ValueError for models that are trained otherwise.
    """
    sampling = model.get_model_object("model_sampling")
    known = isinstance(sampling, comfy.model_sampling.EPS) and not isinstance(sampling, (comfy.model_sampling.EDM, comfy.model_sampling.X0))
    if not known or not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
        raise ValueError(f"{NODE} trains models that predict epsilon or v at 1000 timesteps, but this {family(model)} model samples otherwise. "
                         "Take other sampling patches off it, or load a plain SD1.5, SD2.1 or SDXL checkpoint.")
    if model.model.concat_keys:
        raise ValueError(f"{NODE} cannot train an inpainting model: its UNet wants a mask too. Train with the plain checkpoint; the LoRA fits both.")
    # LCM samples on 50 of the timesteps; the network knows all. A model that was just sampled still carries the sampling of that run.
    plain = model.object_patches_backup.get("model_sampling", model.model.model_sampling)
    table = sampling if len(sampling.sigmas) == len(plain.sigmas) else plain
    kind = maths.V if isinstance(sampling, comfy.model_sampling.V_PREDICTION) else maths.EPSILON
    return kind, (1 / (1 + table.sigmas.double() ** 2)).float().cpu().clone()


def opaque(pictures: torch.Tensor) -> torch.Tensor:
    """The colours of IMAGE [B, H, W, 1 to 4 channels] as RGB: grey is repeated, opacity (the 2nd or 4th channel) left out.

    Raises ValueError for transparent, tiny or broken pictures.
    """
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 2, 3, 4):
        raise ValueError(f"The training picture of {NODE} has dimensions {list(pictures.shape)}, but pictures are [pictures, height, width, channels] "
                         "with 1 to 4 channels. Connect a Load Image.")
    count, height, width, channels = pictures.shape
    if not count:
        raise ValueError(f"{NODE} got no picture: the batch is empty. Connect a Load Image.")
    if min(height, width) < SMALLEST:
        raise ValueError(f"The training picture of {NODE} has {width} x {height} pixels. Both sides must be at least {SMALLEST}: take a larger picture "
                         "(512 or more shows its style best).")
    if not torch.isfinite(pictures).all():
        raise ValueError(f"The training picture of {NODE} holds NaN or infinite values. Check the node it comes from.")
    if channels in (2, 4) and bool((pictures[..., -1] < 1).any()):
        raise ValueError(f"The training picture of {NODE} is transparent in places, where colours are arbitrary. Put it on a background first, in an "
                         "image editor or with Porter-Duff Image Composite.")
    return pictures[..., :3] if channels > 2 else pictures[..., :1].expand(-1, -1, -1, 3)


def encoded(model, vae, pictures: torch.Tensor, resolution: int, flip: bool) -> list[list[torch.Tensor]]:
    """Latents [1, C, h, w] as the VAE gives them, per picture itself and, with `flip`, its mirror image.

    The short side becomes `resolution` pixels, the long side at most twice that, both cut to whole eights of latent cells.
    """
    unit = 8 * int(vae.spacial_compression_encode())
    short = min(pictures.shape[1:3])
    height, width = (max(unit, int(resolution * min(side / short, 2) / unit + 0.5) * unit) for side in pictures.shape[1:3])
    method = "area" if min(height, width) < short else "bicubic"  # lanczos would round to 8 bits
    pixels = comfy.utils.common_upscale(pictures.movedim(-1, 1), width, height, method, "center").movedim(1, -1).clamp(0, 1)
    found = []
    for picture in pixels.split(1):
        variants = [picture, picture.flip(2)] if flip else [picture]
        found.append([vae.encode(variant).float().cpu() for variant in variants])
        for latent in found[-1]:
            check_latent(model, latent, NODE)
    return found


def target_modules(inner, targets: str) -> dict[str, torch.nn.Module]:
    """{name inside the UNet: Linear} of the projections that are trained, self- and cross-attention of every layer: 96 in SD1.5."""
    names = {module: name for name, module in inner.diffusion_model.named_modules()}
    found = {}
    for layer in blocks(inner.diffusion_model).values():
        for attention in (layer.attn1, layer.attn2):
            for part in TARGETS[targets]:
                module = attention.get_submodule(part)
                found[names[module]] = module
    return found


def file_names(inner, modules) -> dict[str, str]:
    """{name inside the UNet: "lora_unet_..." name of the diffusers UNet, which every LoRA loader reads}."""
    diffusers = {host: name for name, host in comfy.utils.unet_to_diffusers(inner.model_config.unet_config).items()}
    return {name: "lora_unet_" + diffusers.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight").replace(".", "_") for name in modules}


def lora_file(adapters: maths.Adapters, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file: lora_down [rank, in], lora_up [out, rank], alpha = rank."""
    tensors = {}
    for name, (down, up) in adapters.tensors().items():
        tensors |= {f"{names[name]}.lora_down.weight": down, f"{names[name]}.lora_up.weight": up, f"{names[name]}.alpha": torch.tensor(float(adapters.rank))}
    return tensors
