"""What DiffStyler's nodes refuse or warn about: the message says what, where and the cure, and the model stays as it is."""

import logging
from dataclasses import replace

import comfy.samplers
import comfy.supported_models
import comfy_extras.nodes_model_advanced
import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from portrait_atelier.nodes.mask_blend import FastSAMMaskBlend


@pytest.fixture(scope="module")
def path(desk):
    with torch.inference_mode():
        return desk.source(steps=2)


@pytest.fixture(autouse=True)
def no_hooks_left(desk):
    yield
    assert not any(module._forward_hooks for module in desk.model.model.modules())


def refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_not_a_unet_of_these_families(desk, path):
    class Flux(comfy.supported_models.SD15):
        pass

    class Patcher:
        class model:
            latent_format, model_config, diffusion_model = desk.model.model.latent_format, Flux({}), torch.nn.Linear(1, 1)

    refused("SD1, SD2 or SDXL.*this model is Flux.*Load an SD1.5", lambda: desk.source(model=Patcher()))
    refused("SD1, SD2 or SDXL.*this model is Flux", lambda: desk.inject(path, desk.branch(), model=Patcher()))


def test_source_of_another_model(desk, path, sdxl, make_desk):
    refused("made with a model of family TinySD15, but this model is TinySDXL", lambda: desk.inject(path, desk.branch(), model=sdxl.model))
    other = make_desk("nano", seed=1).model
    refused("family TinySD15, but this model is TinySD15 with other weights or LoRAs.*FastSAM Mask Blend", lambda: desk.inject(path, desk.branch(), model=other))
    patched = desk.model.clone()
    patched.add_patches({"diffusion_model.out.2.weight": ("diff", (torch.zeros(4, 32, 3, 3),))}, 1.0)
    refused("other weights or LoRAs", lambda: desk.inject(path, desk.branch(), model=patched))


def test_another_grid(desk, path):
    lcm = comfy_extras.nodes_model_advanced.ModelSamplingDiscrete().patch(desk.model, "lcm", False)[0]
    refused(r"grid of timesteps 501, 1, which this model's sampling reads as 499, 19", lambda: desk.inject(path, desk.branch(), model=lcm))
    guider, sampler, sigmas, latent, _ = desk.inject(path, desk.branch())
    refused("2 steps, timesteps 501, 1, and the sampler runs 3 other", lambda: desk.run((guider, sampler, torch.cat([sigmas[:1] * 2, sigmas]), latent, _)))
    refused("latent has shape .*12, 12.*source.*8, 8", lambda: desk.run((guider, sampler, sigmas, {"samples": torch.ones(1, 4, 12, 12)}, _)))
    refused("carries a noise mask", lambda: desk.run((guider, sampler, sigmas, {**latent, "noise_mask": torch.ones(1, 64, 64)}, _)))
    refused("needs its own sampler", lambda: desk.run((guider, comfy.samplers.sampler_object("euler"), sigmas, latent, _)))


@pytest.mark.parametrize("latent, message", [
    ({"samples": torch.ones(2, 4, 8, 8)}, "batch of 2.*one picture.*Latent From Batch"),
    ({"samples": torch.ones(1, 4, 8, 8), "noise_mask": torch.ones(1, 64, 64)}, "noise mask.*FastSAM Mask Blend"),
    ({"samples": torch.zeros(1, 4, 8, 8)}, "latent of Source Trajectory is empty"),
    ({"samples": torch.ones(1, 16, 8, 8)}, "VAE of this checkpoint"),
    ({"samples": torch.full((1, 4, 8, 8), float("nan"))}, "latent of Source Trajectory holds NaN"),
])
def test_latents(desk, latent, message):
    refused(message, lambda: desk.source(latent=latent))


@pytest.mark.parametrize("key", ["area", "mask", "control", "hooks", "gligen", "start_percent"])
def test_prompts_that_cannot_be_packed(desk, path, key):
    value = torch.ones(1, 8, 8) if key == "mask" else 1.0
    def bad(prompt):
        return [[prompt[0][0], {**prompt[0][1], key: value}]]

    refused(f"'empty_prompt' of Source Trajectory carries '{key}'", lambda: desk.source(prompt=bad(desk.empty)))
    refused(f"'negative' of LoRA Cross-Injection carries '{key}'", lambda: desk.inject(path, desk.branch(), negative=bad(desk.negative)))
    refused(f"prompt of style 2.*carries '{key}'", lambda: desk.inject(path, desk.branch(bad(desk.empty), desk.branch())))
    refused(f"'base_prompt' .*carries '{key}'", lambda: desk.inject(path, desk.branch(), background="base", base_prompt=bad(desk.empty)))


def test_several_prompts_or_none(desk, path):
    refused("'negative' .*holds 2 prompts.*without Combine", lambda: desk.inject(path, desk.branch(), negative=desk.negative * 2))
    refused("prompt of style 1.*holds 0 prompts", lambda: desk.inject(path, FastSAMMaskBlend.execute([])[0]))


def test_prompts_of_other_lengths(desk, path, tensor, apart):
    """Padded by repetition, as ComfyUI pads them: repeating a prompt changes nothing by itself."""
    long = [[torch.cat([desk.prompts[0][0][0]] * 2, 1), {}]]
    assert apart(desk.sample(path, desk.branch(long)), desk.sample(path, desk.branch())) < 1e-4


@pytest.mark.parametrize("mask, message", [
    (torch.ones(1, 64, 96), "mask of style 1.* is 96 x 64, another shape than the latent's 8 x 8.*picture that was encoded"),
    (torch.ones(0, 64, 64), "holds no mask: nothing was found"),
    (torch.full((1, 64, 64), float("nan")), "holds NaN"), (torch.full((1, 64, 64), float("inf")), "NaN or infinite"),
])
def test_masks(desk, path, mask, message):
    refused(message, lambda: desk.inject(path, desk.branch(mask=mask)))


def test_masks_that_are_fine(desk, path, tensor):
    """Almost the same shape, another size, one without a batch, values outside [0, 1], overlapping ones."""
    for mask in (torch.ones(1, 200, 201), torch.ones(3, 5, 5), torch.ones(16, 16), torch.full((1, 64, 64), 7.0)):
        job = desk.inject(path, desk.branch(mask=mask))[0].job
        assert torch.equal(job.weights[0], torch.ones(8, 8)) and not job.outside.any()
    overlapping = desk.branch(desk.prompts[1], desk.branch(mask=torch.ones(1, 64, 64)), mask=torch.ones(1, 64, 64))
    job = desk.inject(path, overlapping)[0].job
    assert not job.weights[0].any() and torch.equal(job.weights[1], torch.ones(8, 8)), "the later one lies on top"


def changed(desk, suffix, value=None, drop=()):
    lora = {key: tensor for key, tensor in desk.lora().items() if not key.endswith(drop or "\0")}
    name = next(key for key in desk.lora() if key.endswith("lora_up.weight")).removesuffix(".lora_up.weight")
    return {**lora, name + suffix: value}


def test_kinds_of_lora(desk, path):
    def check(message, lora):
        refused(message, lambda: desk.inject(path, desk.branch(lora=lora)))

    name = next(key for key in desk.lora() if key.endswith("lora_up.weight")).removesuffix(".lora_up.weight")
    wide = torch.zeros(desk.model.model.get_submodule(name).weight.shape[0], 2)
    narrow = torch.zeros(2, desk.model.model.get_submodule(name).weight.shape[1])
    check(f"'of the 'lora' input' is of a kind .* DoRA at {name}.*Load LoRA", changed(desk, ".dora_scale", torch.ones(32, 1)))
    check("LoHa at", {f"{name}.hada_w1_a": wide, f"{name}.hada_w1_b": narrow, f"{name}.hada_w2_a": wide, f"{name}.hada_w2_b": narrow})
    check("LoKr at", {f"{name}.lokr_w1": torch.zeros(4, 4), f"{name}.lokr_w2": torch.zeros(8, 8)})
    check("'diff' weights at", {f"{name}.diff": torch.zeros(32, 32)})
    conv = "diffusion_model.input_blocks.1.0.in_layers.2"
    check("convolution 3x3 at", {f"{conv}.lora_up.weight": torch.zeros(32, 4, 1, 1), f"{conv}.lora_down.weight": torch.zeros(4, 32, 3, 3)})
    check("nothing for this model's UNet.*Its keys: one, two, three", {key: torch.zeros(1) for key in ("one", "two", "three", "four")})
    check("'of the 'lora' input' is empty: it holds no tensors", {})
    check("another model family: .* takes 32 channels to 32, the LoRA 640 to 32", {f"{name}.lora_up.weight": wide, f"{name}.lora_down.weight": torch.zeros(2, 640)})


def test_lora_with_a_text_encoder(desk, path, caplog):
    caplog.set_level(logging.WARNING, "portrait_atelier")
    lora = {**desk.lora(), "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0), "lora_te_text_model_encoder_layers_1_mlp_fc1.alpha": torch.tensor(1.0)}
    desk.inject(path, desk.branch(lora=lora))
    assert len([r for r in caplog.records if "text encoder" in r.getMessage()]) == 1


def test_lora_files(desk, path, tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    save_file({key: value.contiguous() for key, value in desk.lora().items()}, tmp_path / "style.safetensors")
    assert "style.safetensors" in next(i for i in FastSAMMaskBlend.define_schema().inputs if i.id == "lora_name").options
    from_file = desk.branch(lora_name="style.safetensors", strength=0.5)
    assert torch.equal(desk.sample(path, from_file), desk.sample(path, desk.branch(lora=desk.lora(), strength=0.5)))
    refused("two LoRAs: one connected and the file 'style.safetensors'", lambda: desk.branch(lora=desk.lora(), lora_name="style.safetensors"))


@pytest.mark.parametrize("options", [{"cfg": float("nan")}, {"cfg": -1.0}, {"feature_until": 1001}, {"attention_until": -1}, {"rows_per_forward": -1}], ids=str)
def test_numbers_of_cross_injection(desk, path, options):
    refused(f"'{next(iter(options))}' of LoRA Cross-Injection is", lambda: desk.inject(path, desk.branch(), **options))


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 1001}, {"fixed_point": 6}, {"seed": -1}, {"memory_mb": 0}], ids=str)
def test_numbers_of_the_trajectory(desk, options):
    refused(f"'{next(iter(options))}' of Source Trajectory is", lambda: desk.source(**options))


def test_strength_that_is_no_number(desk):
    refused("'strength' of FastSAM Mask Blend is nan", lambda: desk.branch(strength=float("nan")))


def test_layers_that_are_not_there(desk, path):
    refused(r"'9' of 'f' in 'layers' is no range of decoder blocks. This model has blocks 0-3", lambda: desk.inject(path, desk.branch(), layers="f=9"))


def test_memory_budget(desk, caplog):
    caplog.set_level(logging.INFO, "portrait_atelier")
    large = {"samples": torch.ones(1, 4, 128, 128)}
    refused("would keep 11 latents, 2.8 MiB, but memory_mb allows 1 MiB. Raise memory_mb", lambda: desk.source(latent=large, steps=10, memory_mb=1))
    desk.source(latent=large, steps=10, memory_mb=3)
    assert "forward, 10 steps, 11 latents, 2.8 MiB in memory" in caplog.text


def test_another_patch_regroups_rows(desk, path):
    model = desk.model.clone()

    def tiles(n, context, value, extra):
        return tuple(torch.cat([x, x]) for x in (n, context, value))

    model.set_model_attn1_patch(tiles)
    model.set_model_attn1_output_patch(lambda out, extra: out.chunk(2)[0])
    refused(r"expected 3 rows in diffusion_model\..*attn1.to_q, but found 6: another patch \(HyperTile\?\)", lambda: desk.sample(path, desk.branch(), model=model, layers="sa=2-3"))


def test_decoupled_guidance_is_refused(desk, path):
    model = desk.model.clone()
    model.set_model_sampler_calc_cond_batch_function(lambda args: None)
    refused("packs its own model calls", lambda: desk.sample(path, desk.branch(), model=model))


def test_numbers_that_overflow_name_the_step(desk, path):
    prompt = [[desk.prompts[0][0][0] * 1e37, {}]]
    refused("latent of step 1 of 2 holds NaN", lambda: desk.sample(path, desk.branch(prompt)))
    refused(r"latent of step 2 of 3 holds NaN", lambda: desk.source(prompt=prompt, mode="ddim", steps=2))
    late = replace(path, latents=torch.cat([path.latents[:1], path.latents[1:2] * float("nan"), path.latents[2:]]))
    refused("latent of step 2 of 2 holds NaN", lambda: desk.sample(late, desk.branch(mask=torch.zeros(1, 64, 64) + torch.eye(64))))
