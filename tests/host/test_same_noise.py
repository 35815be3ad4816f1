"""Same Noise: pictures of a batch come out as they would alone."""

import comfy.sample
import comfy.samplers
import pytest
import torch

from portrait_atelier.nodes.same_noise import SameNoise

NEAR = 1e-4  # other sizes of matrices round differently


def sampled(studio, model, latents, sampler="lcm", seed=7):
    noise = comfy.sample.prepare_noise(latents, seed, [0] * len(latents))
    return comfy.sample.sample(model, noise, 3, 2.0, sampler, "simple", studio.positive, studio.negative, latents, denoise=0.8,
                               seed=seed, disable_pbar=True)


@pytest.mark.parametrize(
    "sampler", ["lcm", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "ddpm", "euler"])
def test_a_batch_is_as_its_pictures_alone(sd15, tensor, apart, sampler):
    latents = tensor(3, 4, 8, 8, seed=3)
    model = SameNoise.execute(sd15.model)[0]
    alone = torch.cat([sampled(sd15, sd15.model, latents[i:i + 1], sampler) for i in range(3)])
    together = sampled(sd15, model, latents, sampler)
    assert apart(together, alone) < NEAR
    if sampler != "euler":
        assert apart(sampled(sd15, sd15.model, latents, sampler), alone) > 100 * NEAR, "without the node they differ"
    assert torch.equal(sampled(sd15, model, latents[:1], sampler), alone[:1])


def test_attention_control_for_a_batch(sd15, tensor, apart):
    """Source i for picture i."""
    latents, style = tensor(2, 4, 8, 8, seed=3), sd15.features(tensor(1, 4, 8, 8, seed=4))
    each = [sd15.patch(sd15.features(latents[i:i + 1]), style) for i in range(2)]
    alone = torch.cat([sampled(sd15, model, latents[i:i + 1]) for i, model in enumerate(each)])
    together = sampled(sd15, SameNoise.execute(sd15.patch(sd15.features(latents), style))[0], latents)
    assert apart(together, alone) < NEAR


def test_unknown_noise_is_refused_and_the_sampler_keeps_its_options(sd15, tensor):
    latents, model = tensor(2, 4, 8, 8, seed=3), SameNoise.execute(sd15.model)[0]
    with pytest.raises(ValueError, match="does not know the noise of the sampler 'dpmpp_sde'"):
        sampled(sd15, model, latents, "dpmpp_sde")
    sampler = comfy.samplers.sampler_object("lcm")
    noise = comfy.sample.prepare_noise(latents, 1)
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, sd15.positive, sd15.negative, latents, seed=1)
    assert sampler.extra_options == {}
