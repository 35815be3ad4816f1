"""The exact laws of DiffStyler: what must not change, what must agree, what must differ. Equations: test_diffstyler_equations.py."""

from dataclasses import replace

import comfy.lora
import comfy.model_management
import comfy.samplers
import comfy.sd
import comfy_extras.nodes_custom_sampler
import pytest
import torch

from portrait_atelier.attention.injection import plan, step_rows
from portrait_atelier.guidance.inversion import invert_step
from portrait_atelier.guidance.regions import euler_step
from portrait_atelier.host import cross_injection as host
from portrait_atelier.host.adapters import low_rank_pairs
from portrait_atelier.host.routed import Routed

TOLERANCE = 1e-5
ALL = dict(feature_until=0, attention_until=0)


@pytest.fixture(scope="module")
def path(desk):
    with torch.inference_mode():
        return desk.source(steps=4)


@pytest.fixture(scope="module")
def few(desk):
    with torch.inference_mode():
        return desk.source(mode="shared noise", steps=4, seed=5)


def half(side=64, left=True):
    mask = torch.zeros(1, side, side)
    mask[..., slice(side // 2) if left else slice(side // 2, None)] = 1
    return mask


def snapshot(model):
    return (repr(model.model_options), repr(model.wrappers), repr(model.injections), repr(list(model.patches)),
            [(name, len(m._forward_hooks), len(m._forward_pre_hooks), m.forward.__func__) for name, m in model.model.named_modules() if name])


def unet_rows(desk):
    """Counts rows of every UNet call: `with` gives the list."""
    class Count:
        def __enter__(self):
            self.rows = []
            self.hook = desk.model.model.diffusion_model.register_forward_pre_hook(lambda m, args: self.rows.append(len(args[0])))
            return self.rows

        def __exit__(self, *error):
            self.hook.remove()
    return Count()


class OneCall:
    """The packed call alone, outside of sampling: rows [source, edits...] through the routed model."""

    def __init__(self, desk, *branches, layers="auto", preset="paper", **options):
        self.desk = desk
        guider, *_ = desk.inject(desk.source(steps=4), branches, layers=layers, preset=preset, **options)
        self.job = guider.job

    def __call__(self, x, source_x, prompts, rows, routed=None):
        model = self.desk.model.model
        contexts = [prompts[row.prompt][0][0] for row in rows]
        inputs = torch.cat([source_x if row.prompt == "source" else x for row in rows])
        with (routed or Routed(model, self.job.loras, self.job.kinds)) as routed, routed.call(plan(rows, frozenset(self.job.loras))):
            return self.model(inputs, torch.cat(contexts))

    def model(self, inputs, contexts, patcher=None):
        model = (patcher or self.desk.model).model
        return model.apply_model(inputs, torch.full((len(inputs),), 5.0), c_crossattn=contexts, transformer_options={})


def rows_of(call, timestep=900, **options):
    options = dict(dict(preset="paper", feature_until=401, attention_until=501, guided=True, base=False, keep_source=False), **options)
    return step_rows(timestep, len(call.job.weights), call.job.sites, **options)


# 1. Idle hooks and hooks taken away change nothing.

def test_idle_and_gone(desk, tensor):
    call, x = OneCall(desk, *desk.branch(lora=desk.lora())), tensor(2, 4, 8, 8, seed=1)
    contexts = torch.cat([desk.empty[0][0], desk.prompts[0][0][0]])
    plain = call.model(x, contexts)
    with Routed(desk.model.model, call.job.loras, call.job.kinds) as routed:
        assert routed.handles
        assert torch.equal(call.model(x, contexts), plain)
    assert not routed.handles and torch.equal(call.model(x, contexts), plain)


# 2. The same start, prompt and weights, all injected: the source itself, exactly.

def test_edit_row_equals_source_row(desk, tensor):
    call, x = OneCall(desk, *desk.branch()), tensor(1, 4, 8, 8, seed=1)
    prompts = {"source": desk.empty, "negative": desk.empty, "1": desk.empty}
    source, *edits = call(x, x, prompts, rows_of(call))
    assert len(edits) == 2 and all(torch.equal(edit, source) for edit in edits)
    prompts["1"] = desk.prompts[0]
    assert not torch.equal(call(x, x, prompts, rows_of(call))[2], source), "values still come from the own prompt"


def test_strength_zero_and_the_same_prompt_is_the_source(desk, path, apart):
    """Along a path that is the model's own denoising, the edited path is the source's at every step, whatever the guidance."""
    x, latents = path.at(0, "cpu"), [path.at(0, "cpu")]
    for sigma, after in zip(path.sigmas[:-1], path.sigmas[1:]):
        denoised = desk.model.model.apply_model(x, sigma[None], c_crossattn=desk.empty[0][0], transformer_options={})
        x = euler_step(x, denoised, sigma, after)
        latents.append(x)
    own = replace(path, latents=torch.cat(latents))
    for lora, strength in ((desk.lora(), 0.0), (None, 1.0)):
        got = desk.sample(own, desk.branch(desk.empty, lora=lora, strength=strength), negative=desk.empty, cfg=7.0)
        assert apart(got, process_out(desk, x)) < TOLERANCE
    assert apart(desk.sample(own, desk.branch(desk.empty, lora=desk.lora()), negative=desk.empty), process_out(desk, x)) > 1e-2


def test_strength_zero_installs_no_lora(desk, path):
    guider, *_ = desk.inject(path, desk.branch(lora=desk.lora(), strength=0.0))
    assert not guider.job.loras
    assert torch.equal(desk.sample(path, desk.branch(lora=desk.lora(), strength=0.0)), desk.sample(path, desk.branch()))


# 3. One packed call equals models with the LoRA in their weights. (Maps and features: test_diffstyler_equations.py.)

@pytest.mark.parametrize("family", ["nano", "sd15", "sdxl"])
def test_routed_loras_equal_patched_models(make_desk, tensor, apart, family):
    desk = make_desk(family)
    loras, strengths = [desk.lora(seed) for seed in (1, 2)], (0.7, 1.0)
    branches = desk.branch(desk.prompts[1], desk.branch(lora=loras[0], strength=0.7), lora=loras[1])
    x = tensor(1, 4, 8, 8, seed=1)
    if family == "sdxl":
        return packed_sdxl(desk, branches, loras, strengths, apart)
    call = OneCall(desk, *branches, layers="")
    prompts = {"negative": desk.negative, "1": desk.prompts[0], "2": desk.prompts[1]}
    rows = rows_of(call)
    packed = call(x, x, prompts, rows)
    for row, got in zip(rows, packed):
        patched, _ = comfy.sd.load_lora_for_models(desk.model, None, loras[row.branch - 1], strengths[row.branch - 1], 0)
        comfy.model_management.load_models_gpu([patched])
        assert apart(got, call.model(x, prompts[row.prompt][0][0], patched)[0]) < TOLERANCE
    comfy.model_management.load_models_gpu([desk.model])


def packed_sdxl(desk, branches, loras, strengths, apart):
    """SDXL needs pooled prompts, so its rows are judged through one step of sampling: x - D of the packed call at cfg 1."""
    path = desk.source(steps=1)
    for number in (1,):
        got = desk.sample(path, branches[number:number + 1], layers="", cfg=1.0)
        patched, _ = comfy.sd.load_lora_for_models(desk.model, None, loras[number], strengths[number], 0)
        plain = patched_euler(desk, patched, path, branches[number].prompt)
        assert apart(got, plain) < 1e-4  # 70 layers of random weights amplify rounding


def patched_euler(desk, model, path, prompt):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, prompt)
    noise = (path.at(0, "cpu") - desk.model.model.process_latent_in(desk.latent["samples"])) / path.sigmas[0]
    return guider.sample(noise, desk.latent["samples"], comfy.samplers.sampler_object("euler"), path.sigmas, disable_pbar=True, seed=0)


def test_a_lora_in_the_names_that_files_use(make_desk, tensor, apart):
    """lora_unet_... names, as Style LoRA Train and the published code write, give the same pairs."""
    desk = make_desk("sd15")
    lora, names = desk.lora(), comfy.lora.model_lora_keys_unet(desk.model.model, {})
    diffusers = {target.removesuffix(".weight"): name for name, target in names.items() if name.startswith("lora_unet_")}
    renamed = {f"{diffusers[key.split('.lora_')[0].split('.alpha')[0]]}.{key.rsplit('.', 2 if 'lora_' in key else 1)[1 if 'lora_' not in key else -2]}"
               + (".weight" if "lora_" in key else ""): value for key, value in lora.items()}
    a, b = low_rank_pairs(desk.model, lora, "a"), low_rank_pairs(desk.model, renamed, "b")
    assert a.keys() == b.keys() and len(a) == 96
    assert all(torch.equal(a[key].up, b[key].up) and a[key].scale == b[key].scale for key in a)


def test_fp8_weights(make_desk, tensor, apart):
    """Storage in fp8, computing in float32: routed rows are those of the same model with the LoRA added after reading the weights."""
    desk = make_desk("nano")
    branches = desk.branch(lora=desk.lora())
    call, x = OneCall(desk, *branches), tensor(1, 4, 8, 8, seed=1)
    prompts = {"source": desk.empty, "negative": desk.negative, "1": desk.prompts[0]}
    rounded = [module for module in desk.model.model.modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))]
    for module in rounded:
        module.weight = torch.nn.Parameter(module.weight.to(torch.float8_e4m3fn).float(), requires_grad=False)
    expected = call(x, x, prompts, rows_of(call))
    for module in rounded:
        module.weight = torch.nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)
        module.comfy_cast_weights = True
    stored = {name: weight.view(torch.uint8).clone() for name, weight in desk.model.model.named_parameters() if weight.dtype == torch.float8_e4m3fn}
    assert apart(call(x, x, prompts, rows_of(call)), expected) < TOLERANCE
    now = dict(desk.model.model.named_parameters())
    assert stored and all(torch.equal(now[name].view(torch.uint8), weight) for name, weight in stored.items()), "weights are never rewritten"


def test_gguf_weights(make_desk, tensor, apart, in_blocks):
    """Weights that no code but their own module can read."""
    desk = make_desk("nano")
    call, x = OneCall(desk, *desk.branch(lora=desk.lora())), tensor(1, 4, 8, 8, seed=1)
    prompts = {"source": desk.empty, "negative": desk.negative, "1": desk.prompts[0]}
    expected, told = [call(x, x, prompts, rows_of(call)) for _ in in_blocks(desk.model)]
    assert apart(told, expected) < TOLERANCE


# 4. The source row does not know what the others do.

def test_source_row_is_untouched(desk, tensor):
    x, source_x = tensor(1, 4, 8, 8, seed=1), tensor(1, 4, 8, 8, seed=2)
    prompts = {"source": desk.empty, "negative": desk.negative, "1": desk.prompts[0]}
    sources = [OneCall(desk, *desk.branch(lora=lora), layers=layers)(x, source_x, prompts, (rows_of(call := OneCall(desk, *desk.branch())))) [0]
               for lora in (None, desk.lora(1), desk.lora(2)) for layers in ("auto", "f=2-3", "")]
    assert all(torch.equal(source, sources[0]) for source in sources) and call


# 5. Chunks.

@pytest.mark.parametrize("options", [{}, {"preset": "reference"}, {"cfg": 1.0}], ids=str)
def test_chunks_equal_one_call(desk, path, few, apart, options):
    branches = desk.branch(desk.prompts[1], desk.branch(lora=desk.lora(1), mask=half()), lora=desk.lora(2), mask=half(left=False))
    source = few if "cfg" in options else path
    packed = desk.sample(source, branches, **options)
    for limit in (1, 3):
        with unet_rows(desk) as chunked:
            assert apart(desk.sample(source, branches, rows_per_forward=limit, **options), packed) < TOLERANCE
        assert max(chunked) == max(limit, 2)


def test_little_memory_splits_the_call(desk, path, apart, monkeypatch):
    branches = desk.branch(desk.prompts[1], desk.branch(lora=desk.lora(1)), lora=desk.lora(2))
    packed = desk.sample(path, branches)
    need = desk.model.model.memory_required([3, 4, 8, 8]) * 1.5
    monkeypatch.setattr(desk.model, "get_free_memory", lambda device: need + 1, raising=False)
    with unet_rows(desk) as rows:
        assert apart(desk.sample(path, branches), packed) < TOLERANCE
    assert max(rows) == 3


# 6. Nothing where no mask is.

def test_an_empty_mask_keeps_the_source(desk, path, few):
    for source in (path, few, desk.source(mode="ddim", steps=3)):
        for preset in ("paper", "reference"):
            outputs = desk.inject(source, desk.branch(lora=desk.lora(), mask=torch.zeros(1, 64, 64)), preset=preset, background="source")
            seen = []
            outputs[0].predict_noise = watch(outputs[0], seen)
            assert torch.equal(desk.run(outputs), desk.latent["samples"])
            assert len(seen) == len(source.sigmas) - 1
            assert all(torch.equal(x, source.at(step, "cpu")) for step, x in enumerate(seen)), (source.mode, preset)
            assert outputs[4].shape == (1, 64, 64) and not outputs[4].any()


def watch(guider, seen):
    original = type(guider).predict_noise.__get__(guider)

    def predict_noise(x, *args, **kwargs):
        seen.append(x.clone())
        return original(x, *args, **kwargs)
    return predict_noise


def test_outside_stays_and_inside_moves(desk, path, few):
    for source in (path, few):
        for mask in (half(), half().repeat(3, 1, 1), half(128)):  # several masks are one; other sizes of the same shape
            result = desk.sample(source, desk.branch(lora=desk.lora(), mask=mask))
            assert torch.equal(result[..., 4:], desk.latent["samples"][..., 4:])
            assert not torch.isclose(result[..., :4], desk.latent["samples"][..., :4]).all()


def test_a_full_mask_is_no_mask(desk, path):
    assert torch.equal(desk.sample(path, desk.branch(mask=torch.ones(1, 64, 64))), desk.sample(path, desk.branch()))


# 7. Disjoint masks: one step of two styles is each style's own step in its region.

@pytest.mark.parametrize("background", ["source", "base"])
def test_disjoint_masks(desk, apart, background):
    path, loras = desk.source(steps=1), [desk.lora(1), desk.lora(2)]
    first, second = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)
    first[..., :24], second[..., 40:] = 1, 1
    both = desk.sample(path, desk.branch(desk.prompts[1], desk.branch(lora=loras[0], mask=first), lora=loras[1], mask=second), background=background)
    one = desk.sample(path, desk.branch(lora=loras[0], mask=first), background=background)
    other = desk.sample(path, desk.branch(desk.prompts[1], lora=loras[1], mask=second), background=background)
    assert apart(both[..., :3], one[..., :3]) < TOLERANCE and apart(both[..., 5:], other[..., 5:]) < TOLERANCE
    assert apart(one[..., 5:], other[..., 5:]) > 1e-2


# 9. Inversion.

def gaussian(seed=0):
    """D of z_0 ~ N(mean, variance) per coordinate: the one model whose reverse path is known."""
    generator = torch.Generator().manual_seed(seed)
    mean, variance = torch.randn(4, 8, 8, generator=generator).double(), torch.rand(4, 8, 8, generator=generator).double() * 0.5 + 0.05
    z0 = mean + variance.sqrt() * torch.randn(4, 8, 8, generator=generator).double()
    return z0, lambda x, sigma: mean + variance / (variance + sigma**2) * (x - mean)


def round_trip(steps, refinements, straight_on, seed=0):
    """Largest error of inversion and DDIM back, relative to the picture."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)
    sigmas = [0.0, *(float(((1 - a) / a) ** 0.5) for a in abar[1::1000 // steps])]
    z0, denoise = gaussian(seed)
    x, slope = z0, None
    for sigma, after in zip(sigmas, sigmas[1:]):
        x, slope = invert_step(x, sigma, after, denoise, refinements, slope if straight_on else None)
    for sigma, after in zip(sigmas[::-1], sigmas[-2::-1]):
        x = euler_step(x, denoise(x, sigma), sigma, after)
    return float((x - z0).abs().max() / z0.abs().max())


def test_every_refinement_gains_a_factor_of_ten():
    errors = [round_trip(50, k, straight_on=False) for k in (0, 1, 2)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2], errors


def test_going_straight_on_is_worth_a_refinement():
    """Ours: the last step's slope as the first guess; one call per step then does what two do otherwise."""
    for seed in range(3):
        straight = [round_trip(50, k, True, seed) for k in (0, 1, 2)]
        assert straight[0] * 5 < round_trip(50, 0, False, seed) and straight[0] > 4 * straight[1] > 16 * straight[2]
        assert straight[0] > 2.5 * round_trip(100, 0, True, seed), "and falls with the number of steps"


def test_a_correction_that_grows_is_not_taken():
    """D with a slope that makes the iteration diverge: the first guess's correction is kept, not the exploding ones."""
    x = torch.ones(1, 2, 2)
    diverging = lambda y, sigma: -40 * y
    first, _ = invert_step(x, 1.0, 2.0, diverging, 0)
    kept, slope = invert_step(x, 1.0, 2.0, diverging, 5)
    assert torch.equal(first, kept) and torch.equal(kept, x + slope)


@pytest.mark.parametrize("mode, calls", [("ddim", 6), ("forward", 0), ("shared noise", 0)])
def test_cost_of_a_trajectory(desk, mode, calls):
    with unet_rows(desk) as rows:
        source = desk.source(mode=mode, steps=3, fixed_point=1)
    assert sum(rows) == calls
    assert len(source.sigmas) == 4 and source.sigmas[-1] == 0 and len(source.latents) == (1 if mode == "shared noise" else 4)
    assert source.latents.dtype == torch.float32 and torch.equal(source.latents[-1:], desk.model.model.process_latent_in(desk.latent["samples"]))


def test_trajectory_is_that_of_the_equation(desk, apart):
    """ddim through ComfyUI's sampling equals (11) on the bare model; so does the published code's fine grid at the kept sigmas."""
    def denoise(y, sigma):
        return desk.model.model.apply_model(y[None], torch.tensor([sigma]), c_crossattn=desk.empty[0][0], transformer_options={})[0]

    z0 = desk.model.model.process_latent_in(desk.latent["samples"])[0]
    source = desk.source(mode="ddim", steps=3, fixed_point=1)
    x, slope = z0, None
    for step in (2, 1, 0):
        x, slope = invert_step(x, float(source.sigmas[step + 1]), float(source.sigmas[step]), denoise, 1, slope)
        assert apart(source.latents[step], x) < TOLERANCE
    forward = desk.source(mode="forward", steps=3, seed=4)
    noise = [(forward.latents[step] - z0) / forward.sigmas[step] for step in range(3)]
    assert apart(noise[0], noise[2]) < 1e-3 and abs(float(noise[0].std()) - 1) < 0.2


def test_published_inversion(make_desk, apart, monkeypatch):
    desk = make_desk("nano", side=4)
    fine = 20
    monkeypatch.setattr(host.comfy.samplers, "calculate_sigmas", lambda sampling, name, steps, original=comfy.samplers.calculate_sigmas: original(
        sampling, name, fine if steps == 999 else steps))
    with unet_rows(desk) as rows:
        source = desk.source(mode="reference", steps=4, fixed_point=3)
    assert sum(rows) == fine, "one call per step: no refinements"

    def denoise(y, sigma):
        return desk.model.model.apply_model(y[None], torch.tensor([sigma]), c_crossattn=desk.empty[0][0], transformer_options={})[0]

    x = source.latents[-1]
    path = comfy.samplers.calculate_sigmas(desk.model.get_model_object("model_sampling"), "ddim_uniform", fine).flip(0)
    for sigma, after in zip(path[:-1].tolist(), path[1:].tolist()):
        x, _ = invert_step(x, sigma, after, denoise, 0)
        if after in source.sigmas.tolist():
            assert apart(source.latents[source.sigmas.tolist().index(after)], x) < 1e-3


# 10. Few steps, equation (12).

def test_few_steps_identity_is_exact(desk, few):
    for branch in (desk.branch(desk.empty), desk.branch(desk.empty, lora=desk.lora(), strength=0.0)):
        for cfg in (1.0, 3.0):
            outputs = desk.inject(few, branch, negative=desk.empty, cfg=cfg)
            assert torch.equal(process_in(desk, desk.run(outputs)), process_in(desk, process_out(desk, few.latents)))


def process_in(desk, x):
    return desk.model.model.process_latent_in(x)


def process_out(desk, x):
    return desk.model.model.process_latent_out(x)


def test_few_steps_equation(desk, few, apart):
    """(12) literally, step by step on the bare model without injection."""
    def denoise(x, sigma, prompt):
        return desk.model.model.apply_model(x, torch.tensor([float(sigma)]), c_crossattn=prompt[0][0], transformer_options={})

    mask = half()
    got = desk.sample(few, desk.branch(mask=mask), layers="", cfg=1.0)
    z0 = few.latents
    x0, inside = z0, mask[0, ::8, ::8]
    for step, sigma in enumerate(few.sigmas[:-1]):
        noise = few.at(step, "cpu") - z0
        x0 = inside * (denoise(x0 + noise, sigma, desk.prompts[0]) - denoise(z0 + noise, sigma, desk.empty) + z0) + (1 - inside) * z0
    assert apart(got, process_out(desk, x0)) < TOLERANCE
    assert len({float((few.at(step, "cpu") - z0).std() / few.sigmas[step]) for step in range(4)}) == 4, "new noise in every step"


# 11. Windows are timesteps; rows by the table of costs.

@pytest.mark.parametrize("scheduler, lcm, steps, expected", [
    ("ddim_uniform", False, 50, (30, 25)), ("simple", False, 50, (30, 25)), ("sgm_uniform", False, 50, (30, 25)), ("normal", False, 50, (30, 25)),
    ("simple", False, 4, (3, 2)), ("simple", True, 4, (3, 2)), ("sgm_uniform", True, 4, None), ("ddim_uniform", False, 25, (15, 12)), ("ddim_uniform", False, 100, (60, 50)),
])
def test_step_counts(desk, scheduler, lcm, steps, expected):
    model = desk.model
    if lcm:
        import comfy_extras.nodes_model_advanced
        model = comfy_extras.nodes_model_advanced.ModelSamplingDiscrete().patch(model, "lcm", False)[0]
    sampling = model.get_model_object("model_sampling")
    timesteps = host.timesteps_of(sampling, comfy.samplers.calculate_sigmas(sampling, scheduler, steps))
    if expected is None:  # the third step is 509, halfway between two of LCM's: ComfyUI's rounding depends on the processor
        assert timesteps in ((999, 759, 519, 259), (999, 759, 499, 259))
    else:
        assert (sum(t >= 401 for t in timesteps), sum(t >= 501 for t in timesteps)) == expected


def test_a_whole_run_with_inversion_takes_at_most_200_rows(desk):
    """A fifth of it: 10 of 50 steps. The whole is counted by `atelier.py bench diffstyler` and in tests/unit."""
    with unet_rows(desk) as seen:
        desk.sample(desk.source(mode="ddim", steps=10), desk.branch(lora=desk.lora()))
    assert sum(seen) == 10 + 6 * 3 + 4 * 2 == 180 / 5


@pytest.mark.parametrize("count, rows", [(1, 8), (2, 12)])
def test_rows_of_four_steps(desk, few, count, rows):
    with unet_rows(desk) as seen:
        desk.sample(few, desk.branch(branches=desk.branch() if count == 2 else None), cfg=1.0)
    assert sum(seen) == rows


# Runs leave nothing behind and repeat.

def test_the_model_is_untouched(desk, path):
    before, weights = snapshot(desk.model), {name: w.clone() for name, w in desk.model.model.named_parameters()}
    branches = desk.branch(lora=desk.lora())
    first = desk.sample(path, branches)
    assert snapshot(desk.model) == before and torch.equal(desk.sample(path, branches), first)
    assert all(torch.equal(w, weights[name]) for name, w in desk.model.model.named_parameters())


@pytest.mark.parametrize("when", ["first call", "inside a layer", "last step", "trajectory"])
def test_cancel_leaves_the_model_untouched(desk, path, when):
    before, branches = snapshot(desk.model), desk.branch(lora=desk.lora())
    layer = desk.model.model.diffusion_model.output_blocks[3][1].transformer_blocks[0].attn2
    outputs = desk.inject(path, branches)
    if when == "trajectory":
        comfy.model_management.interrupt_current_processing()
        attempt = lambda: desk.source(mode="ddim", steps=3)
    elif when == "first call":
        attempt = lambda: (comfy.model_management.interrupt_current_processing(), desk.run(outputs))
    else:
        calls = []

        def stop(module, args):
            calls.append(1)
            if len(calls) == (1 if when == "inside a layer" else 4):
                raise comfy.model_management.InterruptProcessingException
        hook = layer.register_forward_pre_hook(stop)
        attempt = lambda: desk.run(outputs)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            attempt()
    finally:
        comfy.model_management.interrupt_current_processing(False)
        if "hook" in locals():
            hook.remove()
    assert snapshot(desk.model) == before
    guider = outputs[0]
    assert guider.step is None and not getattr(guider, "routed", None)
    assert torch.equal(desk.run(outputs), desk.sample(path, branches)), "and the same guider runs again"


def test_who_needs_the_negative_prompt_gets_it(desk, path):
    """At guidance 1 its rows are left out, unless another node asked for its prediction."""
    for wanted in (True, False):
        model, told = desk.model.clone(), []
        model.set_model_sampler_pre_cfg_function(lambda args, told=told: told.append(args["conds_out"][1]) or args["conds_out"],
                                                 disable_cfg1_optimization=wanted)
        with unet_rows(desk) as rows:
            desk.sample(path, desk.branch(), model=model, cfg=1.0)
        assert all(bool(negative.any()) is wanted for negative in told) and len(told) == 4
        assert max(rows) == 2 + wanted


def test_other_patches_take_the_source_for_a_negative_row(desk, path):
    seen, model = set(), desk.model.clone()
    model.set_model_attn2_patch(lambda n, context, value, extra: seen.add(tuple(extra["cond_or_uncond"])) or (n, context, value))
    desk.sample(path, desk.branch(), model=model)
    assert seen == {(1, 1, 0), (1, 0)}, "source, negative, style; later without the source"


def test_attention_control_acts_on_packed_rows(desk, make_studio, path, tensor):
    """SEAC on the same model: its tokens are projected beside the packed rows, and no branch's LoRA takes them for a row."""
    studio = make_studio("nano")
    banks = [studio.features(tensor(1, 4, 8, 8, seed=seed), model=desk.model) for seed in (4, 5)]
    model, branch = studio.patch(*banks, model=desk.model), desk.branch(lora=desk.lora(1))
    out = desk.sample(path, branch, model=model)
    assert torch.isfinite(out).all() and not torch.equal(out, desk.sample(path, branch))


def test_noise_is_not_used(desk, path, caplog):
    outputs = desk.inject(path, desk.branch())
    noise = comfy_extras.nodes_custom_sampler.RandomNoise.execute(3)[0]
    assert torch.equal(desk.run(outputs, noise), desk.run(outputs)) and "Disable Noise" in caplog.text


def test_guidance_functions_of_other_nodes(desk, path, apart):
    """Before, in place of and after guidance, once per style and step, as with ComfyUI's own guider."""
    branches = desk.branch(desk.prompts[1], desk.branch(mask=half(), lora=desk.lora()), mask=half(left=False))
    plain, alone = desk.sample(path, branches), desk.sample(path, branches, cfg=1.0)
    assert apart(plain, alone) > 100 * TOLERANCE
    calls = []

    def patched(setter, function):
        calls.clear()
        model = desk.model.clone()
        getattr(model, setter)(lambda args: calls.append(args) or function(args))
        out = desk.sample(path, branches, model=model)
        assert len(calls) == 2 * 4
        return out

    def halfway(args):
        positive, negative = args["conds_out"]
        return [(positive + negative) / 2, negative]  # at guidance 2 the positive alone

    assert apart(patched("set_model_sampler_pre_cfg_function", halfway), alone) < TOLERANCE
    assert calls[0]["conds"][0] is not calls[1]["conds"][0], "each style with its own prompt"
    assert apart(patched("set_model_sampler_cfg_function", lambda args: args["cond"]), alone) < TOLERANCE
    assert apart(patched("set_model_sampler_post_cfg_function", lambda args: args["cond_denoised"]), alone) < TOLERANCE


def test_compiled_models(desk, tensor, apart):
    """What is compiled (eager backend) in the run gives the same; what was compiled before hides its hook, which is told."""
    call, x = OneCall(desk, *desk.branch(lora=desk.lora(targets=("attn1.to_out.0",)))), tensor(1, 4, 8, 8, seed=1)
    prompts = {"source": desk.empty, "negative": desk.negative, "1": desk.prompts[0]}
    rows, attn = rows_of(call), desk.model.model.diffusion_model.output_blocks[3][1].transformer_blocks[0].attn1
    expected, inside = call(x, x, prompts, rows), attn.to_out

    class Compiling(Routed):
        """Compiled modules take the place of the plain ones around a call only, as ComfyUI does it."""

        def call(self, plan):
            attn.to_out = compiled
            return super().call(plan)

    try:
        compiled = torch.compile(inside, backend="eager")
        assert apart(call(x, x, prompts, rows, Compiling(desk.model.model, call.job.loras, call.job.kinds)), expected) < TOLERANCE
        torch.compiler.reset()
        attn.to_out = compiled = torch.compile(inside, backend="eager")
        for _ in range(2):
            call.model(x.expand(3, -1, -1, -1), desk.empty[0][0].expand(3, -1, -1))
        attn.to_out = inside
        with pytest.raises(ValueError, match="did not reach 1 of .*compiled before"):
            call(x, x, prompts, rows, Compiling(desk.model.model, call.job.loras, call.job.kinds))
    finally:
        attn.to_out = inside
        torch.compiler.reset()
