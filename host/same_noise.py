"""One noise for every picture of a batch: what a sampler adds in each step. ComfyUI draws it for the batch at once."""

import inspect

import comfy.k_diffusion.sampling
from comfy.patcher_extension import WrappersMP

KEY = "portrait_atelier.same_noise"
NODE = "Same Noise"
# Samplers of ComfyUI that draw their noise with default_noise_sampler; others have noise of their own, or none.
ANCESTRAL = {"sample_" + name for name in (
    "lcm", "ddpm", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "euler_ancestral_cfg_pp",
    "dpmpp_2s_ancestral_cfg_pp", "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp")}


def same_noise(model):
    """A clone of `model` whose sampler gives every picture the noise that the first would get alone."""
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, share)
    return clone


def share(executor, model, sigmas, extra_args, callback, noise, *args, **kwargs):
    sampler = executor.class_obj
    function, options = getattr(sampler, "sampler_function", None), getattr(sampler, "extra_options", None)
    if noise.shape[0] == 1 or not takes_noise(function):
        return executor(model, sigmas, extra_args, callback, noise, *args, **kwargs)
    if function.__name__ not in ANCESTRAL or "noise_sampler" in options:
        name = function.__name__.removeprefix("sample_")
        raise ValueError(f"{NODE} does not know the noise of the sampler '{name}'. Take lcm or an ancestral one, one without "
                         "noise such as euler, or sample one picture at a time.")
    draw = comfy.k_diffusion.sampling.default_noise_sampler(noise[:1], seed=extra_args.get("seed"))
    # The sampler may be an input of other nodes too: it gets its options back.
    sampler.extra_options = {**options, "noise_sampler": lambda *between: draw(*between).expand_as(noise)}
    try:
        return executor(model, sigmas, extra_args, callback, noise, *args, **kwargs)
    finally:
        sampler.extra_options = options


def takes_noise(function) -> bool:
    try:
        return "noise_sampler" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # no function, or a built-in one
        return False
