"""Recording how a picture becomes noise, DiffStyler's source trajectory: DDIM inversion, or noise added to the picture.

The trajectory is the latents at the sampling sigmas alone. Features, queries and keys are not stored: the sampler makes them
anew, in one more row of each of its own calls.
"""

from dataclasses import dataclass, field

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch

from ..guidance.inversion import invert_step
from .kit.latents import OneCall, check_latent, fingerprint, shared_noise
from .kit.prompts import one_prompt
from .kit.sites import attention_layers
from .log import log

MODES = ("ddim", "forward", "reference", "shared noise")
REFERENCE_STEPS = 999


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A picture's path over the sampling grid, in the model's latent space and in x = z_0 + sigma * epsilon. Never written to.

    sigmas:    [N + 1], falling, the last one 0;  timesteps: [N] of the model the path was made with
    latents:   [N + 1, C, h, w] float32 on the CPU; for "shared noise" z_0 alone, [1, C, h, w]
    original:  the LATENT as it came, [1, C, h, w];  prompt: the CONDITIONING of the path, the empty prompt
    """

    mode: str
    sigmas: torch.Tensor
    timesteps: tuple[int, ...]
    latents: torch.Tensor = field(repr=False)
    original: torch.Tensor = field(repr=False)
    prompt: list = field(repr=False)
    seed: int
    family: str
    weights_id: object

    @property
    def shared(self) -> bool:
        return self.mode == "shared noise"

    @property
    def z0(self) -> torch.Tensor:
        return self.latents[-1]

    def noised(self, x0: torch.Tensor, step: int) -> torch.Tensor:
        """x_0 + sigma * epsilon with the epsilon that both paths of "shared noise" have in this step; [..., C, h, w]."""
        generator = torch.Generator().manual_seed((self.seed + step) % 2**64)
        noise = torch.randn(self.original.shape[1:], generator=generator)
        return x0 + float(self.sigmas[step]) * noise.to(x0)

    def at(self, step: int, device) -> torch.Tensor:
        """The source's x at sigmas[step], [1, C, h, w]."""
        if self.shared:
            return self.noised(self.latents.to(device), step)
        return self.latents[step:step + 1].to(device)


def timesteps_of(model_sampling, sigmas: torch.Tensor) -> tuple[int, ...]:
    """The model's timestep of every sigma but the last, rounded."""
    return tuple(int(round(float(t))) for t in model_sampling.timestep(sigmas[:-1]).flatten())


def record(model, latent: dict, prompt: list, *, mode: str, steps: int, fixed_point: int, seed: int, budget: int) -> Trajectory:
    """A picture's trajectory over `steps` sampling steps: scheduler ddim_uniform, or simple for "shared noise".

    ddim: (11), 1 + fixed_point UNet calls of one row per step; forward: x = z_0 + sigma * epsilon, one epsilon; reference: 999
    steps of first-order inversion, as the published code; shared noise: z_0, for few-step models. `latent` is one picture,
    `budget` bytes for the recorded latents. Raises ValueError for what does not fit.
    """
    attention_layers(model)
    samples = latent["samples"]
    check_latent(model, samples, "Source Trajectory")
    if samples.shape[0] != 1:
        raise ValueError(f"Source Trajectory got a batch of {samples.shape[0]} latents. It follows one picture: use Latent From Batch.")
    if latent.get("noise_mask") is not None:
        raise ValueError("The latent of Source Trajectory carries a noise mask. Take Set Latent Noise Mask away and connect the mask to "
                         "FastSAM Mask Blend.")
    prompt = one_prompt(model, prompt, "empty_prompt", "Source Trajectory")
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple" if mode == "shared noise" else "ddim_uniform", steps).float().cpu()
    kept = 1 if mode == "shared noise" else len(sigmas)
    need = kept * samples[0].numel() * 4
    if need > budget:
        raise ValueError(f"Source Trajectory would keep {kept} latents, {need / 2**20:.1f} MiB, but memory_mb allows {budget / 2**20:.0f} MiB. "
                         "Raise memory_mb, take fewer steps or a smaller picture.")
    original = samples.float().cpu().clone()
    z0 = model.model.process_latent_in(original)
    if mode == "shared noise":
        latents = z0
    elif mode == "forward":
        latents = z0 + sigmas[:, None, None, None] * shared_noise(original.shape, seed)
    else:
        latents = _inverted(model, original, prompt, sigmas, fixed_point, mode == "reference")
    bad = [step for step, x in enumerate(latents) if not torch.isfinite(x).all()]
    if bad:
        raise ValueError(f"Source Trajectory: the latent of step {bad[-1] + 1} of {kept} holds NaN or infinite values. The model overflows: run it in "
                         "bf16 or fp32, or check the prompt.")
    log.info("Source Trajectory: %s, %d steps, %d latents, %.1f MiB in memory.", mode, len(sigmas) - 1, kept, need / 2**20)
    return Trajectory(mode, sigmas, timesteps_of(sampling, sigmas), latents, original, prompt, seed, *fingerprint(model))


def _inverted(model, original, prompt, sigmas, refinements, reference: bool) -> torch.Tensor:
    """Equation (11) from sigma 0 up: [N + 1, C, h, w] on the CPU, in the order of `sigmas`."""
    path = sigmas.flip(0)
    if reference:
        sampling = model.get_model_object("model_sampling")
        fine = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", REFERENCE_STEPS).float().cpu()
        path = torch.cat([sigmas, fine]).unique()  # sorted; every sampling sigma is on it
    kept = {float(sigma): step for step, sigma in enumerate(sigmas)}
    latents = torch.empty(len(sigmas), *original.shape[1:])
    bar = comfy.utils.ProgressBar(len(path) - 1)

    def sampler(denoise, x, path, extra_args, callback, disable):
        latents[-1] = x[0].float().cpu()
        slope = None

        def evaluate(y, sigma):
            return denoise(y, torch.full((1,), sigma, device=y.device), **extra_args)

        for sigma, after in zip(path[:-1].tolist(), path[1:].tolist()):
            comfy.model_management.throw_exception_if_processing_interrupted()
            x, slope = invert_step(x, sigma, after, evaluate, 0 if reference else refinements, None if reference else slope)
            if after in kept:
                latents[kept[after]] = x[0].float().cpu()
            bar.update(1)
        return x

    guider = OneCall(model)
    guider.inner_set_conds({"positive": prompt})
    guider.sample(torch.zeros_like(original), original, comfy.samplers.KSAMPLER(sampler), path, disable_pbar=True, seed=0)
    return latents
