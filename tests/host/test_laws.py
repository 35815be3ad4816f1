"""The remaining exact laws of ZePo: what must not change, what must agree, what must differ."""

import contextlib
import copy
from dataclasses import replace
from functools import partial

import comfy.model_management
import comfy.sample
import comfy.samplers
import nodes as host_nodes
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch.utils.flop_counter import FlopCounterMode

from portrait_atelier.attention import seac as maths
from portrait_atelier.host import extract, seac as host
from portrait_atelier.host.kit.calls import note_call

TOLERANCE = 1e-5


@pytest.fixture
def content(tensor):
    return tensor(1, 4, 8, 8, seed=3)


@pytest.fixture
def style(tensor):
    return tensor(1, 4, 8, 8, seed=4)


@pytest.fixture
def banks(sd15, content, style):
    return sd15.features(content), sd15.features(style)


def one_call(studio, model, latent, cfg=2.0, timestep=99, seed=0):
    """One euler step from the state in which features are extracted."""
    sigma = model.get_model_object("model_sampling").sigma(torch.tensor([float(timestep)]))
    return comfy.sample.sample_custom(model, extract.shared_noise(latent.shape, seed), cfg, comfy.samplers.sampler_object("euler"),
                                      torch.cat([sigma, torch.zeros(1)]), studio.positive, studio.negative, latent,
                                      disable_pbar=True, seed=seed)


# 2. Self-reference: with K = [K, K] attention cannot tell the difference.

@pytest.mark.parametrize("strength, share", [(1, 0.5), (1, 0.0), (1, 1.0), (0.5, 0.5), (0.3, 0.9), (0.9, 1.0)])
def test_self_reference(sd15, content, apart, strength, share):
    bank = sd15.features(content)
    model = sd15.patch(bank, bank, style_enhancement=1.0, strength=strength, style_share=share)
    assert apart(one_call(sd15, model, content), one_call(sd15, sd15.model, content)) < TOLERANCE


def test_self_reference_on_other_families(studio, content, apart):
    bank = studio.features(content)
    error = apart(one_call(studio, studio.patch(bank, bank, style_enhancement=1.0), content), one_call(studio, studio.model, content))
    assert error < (TOLERANCE if len(bank.layers) == 8 else 1e-4)  # 70 random layers amplify rounding


def test_self_reference_breaks_when_it_should(sd15, content, apart):
    bank, plain = sd15.features(content), one_call(sd15, sd15.model, content)
    assert apart(one_call(sd15, sd15.patch(bank, bank, style_enhancement=1.2), content), plain) > 1e-2
    other = sd15.features(content, seed=1)
    assert apart(one_call(sd15, sd15.patch(other, other, style_enhancement=1.0), content), plain) > 1e-2


# 3. Nothing to do, nothing installed.

@pytest.mark.parametrize("off", [{"strength": 0.0}, {"start": 1.0, "end": 1.0}, {"start": 0.6, "end": 0.4}, {"layers": ""}])
def test_off_is_the_plain_model(sd15, content, banks, off):
    model = sd15.patch(*banks, **off)
    assert not any(key.startswith(host.KEY) for keys in model.wrappers.values() for key in keys)
    assert model.model_options == sd15.model.model_options and model is not sd15.model
    assert torch.equal(sd15.sample(model, content), sd15.sample(sd15.model, content))
    chained = sd15.patch(None, banks[1], model=model)
    assert torch.equal(sd15.sample(chained, content), sd15.sample(sd15.model, content)), "the chain must stay off"


def test_outside_the_window_is_the_plain_model(sd15, content, banks):
    for more in ({}, {"balance": "images", "strength": 0.7}):  # without and with our own attention installed
        model = sd15.patch(*banks, start=0.0, end=0.3, **more)  # denoise 0.5 begins near 0.5
        assert torch.equal(sd15.sample(model, content), sd15.sample(sd15.model, content))


# 4. Runs repeat, and nothing is left behind.

def test_twenty_runs_are_one(sd15, content, banks):
    model = sd15.patch(*banks)
    first = sd15.sample(model, content, steps=1)
    assert all(torch.equal(sd15.sample(model, content, steps=1), first) for _ in range(19))


def test_extraction_repeats(studio, content):
    state = torch.random.get_rng_state()
    a, b = studio.features(content), studio.features(content)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator must stay as it is"
    assert all(torch.equal(a.features[s][layer], b.features[s][layer]) for s in (0, 1) for layer in a.layers)


def snapshot(model):
    def frozen(value):
        if isinstance(value, dict):
            return {key: frozen(item) for key, item in value.items()}
        return [frozen(item) for item in value] if isinstance(value, list) else value

    return (frozen(model.model_options), frozen(model.wrappers), frozen(model.attachments), frozen(model.patches),
            [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.model.named_modules()])


def test_the_model_is_untouched(sd15, content, style):
    before, plain = snapshot(sd15.model), sd15.sample(sd15.model, content)
    model = sd15.patch(sd15.merge(sd15.features(content)), sd15.features(style), strength=0.8)
    patched = snapshot(model)
    sd15.sample(model, content)
    assert snapshot(sd15.model) == before and snapshot(model) == patched
    assert torch.equal(sd15.sample(sd15.model, content), plain)


# 5. Cached features are those of every step.

def test_cached_equals_recomputed_every_step(sd15, content, style, banks):
    model = sd15.patch(*banks)
    cached = sd15.sample(model, content, steps=3)
    seen = []

    def fresh(guider, latent):
        recorder = extract.Recorder(frozenset(banks[0].layers), torch.device("cpu"))
        options = {"transformer_options": {"wrappers": {WrappersMP.APPLY_MODEL: {"test": [note_call, recorder.listen]}},
                                           "sample_sigmas": torch.zeros(1)}}
        inner = guider.inner_model
        sigma = extract.feature_sigma(inner.model_sampling, 99)
        noised = inner.process_latent_in(latent) + sigma * extract.shared_noise(latent.shape, 0)
        comfy.samplers.calc_cond_batch(inner, [guider.conds["positive"], guider.conds["negative"]], noised, sigma, options)
        return replace(banks[0], features=recorder.features)

    def recompute(executor, x, timestep, model_options={}, seed=None):
        guider = executor.class_obj
        seac = model.get_attachment(host.SLOT)
        source, reference = fresh(guider, content), fresh(guider, style)
        seac = replace(seac, source=source, references=(replace(seac.references[0], bank=reference),))
        options = dict(model_options, transformer_options=dict(model_options["transformer_options"]))
        wrappers = options["transformer_options"]["wrappers"]
        renewed = {**wrappers[WrappersMP.APPLY_MODEL], host.SLOT: [partial(host.hook_call, seac)]}
        options["transformer_options"]["wrappers"] = {**wrappers, WrappersMP.APPLY_MODEL: renewed}
        seen.append(float(timestep[0]))
        return executor(x, timestep, options, seed)

    every_step = model.clone()
    every_step.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", recompute)
    assert torch.equal(sd15.sample(every_step, content, steps=3), cached)
    assert len(seen) == 3


# 6, 7. Symmetries.

def test_exchanging_source_and_reference(sd15, content, banks, apart):
    def both(lam):
        return [sd15.sample(sd15.patch(a, b, style_enhancement=lam), content) for a, b in (banks, banks[::-1])]

    assert apart(*both(1.0)) < TOLERANCE
    assert apart(*both(1.2)) > 5e-2


def test_token_order_does_not_matter(sd15, content, banks, apart):
    def shuffled(bank):
        return replace(bank, features={
            slot: {layer: f[:, torch.randperm(f.shape[1], generator=torch.Generator().manual_seed(8))] for layer, f in layers.items()}
            for slot, layers in bank.features.items()})

    out = sd15.sample(sd15.patch(*map(shuffled, banks)), content)
    assert apart(out, sd15.sample(sd15.patch(*banks), content)) < TOLERANCE


# 8. Batches.

def test_rows_are_independent(sd15, tensor, apart):
    content, style = tensor(3, 4, 8, 8, seed=3), tensor(1, 4, 8, 8, seed=4)
    bank, reference = sd15.features(content), sd15.features(style)
    order = [2, 0, 1]
    picked = replace(bank, features={slot: {layer: f[order] for layer, f in layers.items()} for slot, layers in bank.features.items()})
    noise = tensor(3, 4, 8, 8, seed=6)

    def run(bank, latent, noise):
        return comfy.sample.sample(sd15.patch(bank, reference), noise, 2, 2.0, "euler", "simple", sd15.positive, sd15.negative, latent,
                                   denoise=0.5, seed=1, disable_pbar=True)

    together = run(bank, content, noise)
    assert apart(run(picked, content[order], noise[order]), together[order]) < TOLERANCE
    for i in range(3):
        alone = sd15.features(content[i:i + 1])
        assert all(apart(alone.features[s][layer][0], bank.features[s][layer][i]) < TOLERANCE for s in (0, 1) for layer in bank.layers)
        assert apart(run(alone, content[i:i + 1], noise[i:i + 1])[0], together[i]) < TOLERANCE


# 9. Merging (the rest is in tests/unit).

def test_ratio_zero_is_the_same_object(sd15, banks):
    assert sd15.merge(banks[0], ratio=0.0) is banks[0]


def test_merged_bank(sd15, banks):
    bank, merged = banks[0], sd15.merge(banks[0], ratio=0.5)
    for slot in (0, 1):
        for layer in bank.layers:
            tokens = bank.features[slot][layer].shape[1]
            assert merged.features[slot][layer].shape[1] == merged.counts[slot][layer].shape[1] == tokens - tokens // 2
            assert merged.counts[slot][layer].sum() == tokens
    again = sd15.merge(banks[0], ratio=0.5)
    assert all(torch.equal(again.features[s][layer], merged.features[s][layer]) for s in (0, 1) for layer in bank.layers)


# 10. The two ways to the same attention.

def test_both_paths_agree(sd15, content, banks, apart, monkeypatch):
    model = sd15.patch(*banks)
    concatenated = sd15.sample(model, content)
    called = []

    def zero_bias(groups, per_group):
        called.append(1)
        return torch.zeros(1, 1, sum(group.keys.shape[1] for group in groups))

    monkeypatch.setattr(maths, "logit_bias", zero_bias)
    assert apart(sd15.sample(model, content), concatenated) < TOLERANCE
    assert called
    monkeypatch.setattr(maths, "logit_bias", lambda groups, per_group: zero_bias(groups, per_group).expand(1, query_count(groups), -1))
    query_count = lambda groups: groups[0].keys.shape[1]  # self has as many tokens as the square target
    assert apart(sd15.sample(model, content), concatenated) < TOLERANCE


def test_masks_of_ones_and_zeros(sd15, content, banks, apart):
    ones, zeros = torch.ones(1, 64, 64), torch.zeros(1, 64, 64)
    for options in ({}, {"strength": 0.6, "style_share": 0.7}, {"style_share": 1.0}):
        plain = sd15.sample(sd15.patch(*banks, **options), content)
        assert torch.equal(sd15.sample(sd15.patch(*banks, mask=ones, **options), content), plain)
        nearly = sd15.sample(sd15.patch(*banks, mask=ones * (1 - 1e-7), **options), content)
        assert apart(nearly, plain) < TOLERANCE
        nothing = sd15.sample(sd15.patch(*banks, **{**options, "style_share": 0.0}), content)
        assert apart(sd15.sample(sd15.patch(*banks, mask=zeros, **options), content), nothing) < TOLERANCE
        assert apart(nothing, plain) > 1e-2


def test_a_uniform_mask_is_a_smaller_share(sd15, content, banks, apart):
    """Mask m weighs the reference m * p/(1-p) against the source: 0.5 at p = 1/2 is p = 1/3."""
    for strength in (1.0, 0.6):
        masked = sd15.sample(sd15.patch(*banks, mask=torch.full((1, 64, 64), 0.5), strength=strength), content)
        assert apart(masked, sd15.sample(sd15.patch(*banks, style_share=1 / 3, strength=strength), content)) < TOLERANCE
        assert apart(masked, sd15.sample(sd15.patch(*banks, strength=strength), content)) > 1e-2


def test_images_balance_ignores_number_of_copies(sd15, content, style, banks, apart):
    triple = sd15.features(style.repeat(3, 1, 1, 1))
    one, three = (sd15.sample(sd15.patch(banks[0], bank, balance="images"), content) for bank in (banks[1], triple))
    assert apart(three, one) < TOLERANCE
    one, three = (sd15.sample(sd15.patch(banks[0], bank), content) for bank in (banks[1], triple))
    assert apart(three, one) > 1e-2, "in the paper's balance every token counts"


def test_weighing_merged_duplicates_is_exact(sd15, content, banks, apart):
    """Tokens that come in equal pairs: merging them and weighing by counts changes nothing; without weights it does."""
    def doubled(bank):
        def pairs(f, grid):
            h, w = grid
            return f.view(len(f), h, w, -1)[:, :, ::2].repeat_interleave(2, 2)[:, :, :w].reshape(f.shape)
        return replace(bank, features={slot: {layer: pairs(f, bank.grids[layer]) if min(bank.grids[layer]) > 1 else f
                                              for layer, f in layers.items()} for slot, layers in bank.features.items()})

    source, reference = doubled(banks[0]), banks[1]
    plain = sd15.sample(sd15.patch(source, reference), content)
    weighed, bare = (sd15.sample(sd15.patch(sd15.merge(source, ratio=0.25, weigh_merged=on), reference), content) for on in (True, False))
    assert apart(weighed, plain) < TOLERANCE
    assert apart(bare, plain) > 1e-3


# 12. The timesteps of the published sampler.

@pytest.mark.parametrize("steps", range(1, 13))
def test_timesteps(sd15, steps):
    sampler = comfy.samplers.KSampler(sd15.model, steps, "cpu", "lcm", "simple", 0.5)
    sampling = sd15.model.get_model_object("model_sampling")
    published = [499 - 20 * (i * 25 // steps) for i in range(steps)]
    assert [round(float(sampling.timestep(sigma))) for sigma in sampler.sigmas[:-1]] == published
    assert {1: [499], 2: [499, 259], 4: [499, 379, 259, 139]}.get(steps, published) == published


@pytest.mark.parametrize("kind", ["eps", "lcm"])
def test_sigma_of_the_feature_timestep(sd15, build_model, kind):
    model = sd15.model if kind == "lcm" else build_model("sd15")
    assert abs(float(extract.feature_sigma(model.get_model_object("model_sampling"), 99)) - 0.34167) < 1e-5


# 13. Every widget acts.

WIDGETS = {
    "extract": {"seed": 1, "timestep": 259, "layers": "u2-8"},
    "merge": {"ratio": 0.25, "seed": 5, "weigh_merged": True},
    "patch": {"style_enhancement": 1.0, "strength": 0.5, "style_share": 0.3, "start": 0.65, "end": 0.65, "layers": "u3-8",
              "balance": "images", "pairing": "cycle"},
}


@pytest.mark.parametrize("node, widget", [(node, widget) for node, widgets in WIDGETS.items() for widget in widgets])
def test_every_widget_acts(sd15, tensor, apart, node, widget):
    def run(**changed):
        options = {name: {} for name in WIDGETS}
        options[node] = changed
        source = sd15.merge(sd15.features(tensor(1, 4, 8, 8, seed=3), **options["extract"]), **options["merge"])
        reference = sd15.merge(sd15.features(tensor(2, 4, 8, 12, seed=4), **options["extract"]), **options["merge"])
        return sd15.sample(sd15.patch(source, reference, **options["patch"]), tensor(2, 4, 8, 8, seed=3), steps=2)

    assert apart(run(**{widget: WIDGETS[node][widget]}), run()) > 1e-3


def test_the_negative_prompt_acts(sd15, content, apart):
    empty = [[torch.zeros(1, 77, 64), {}]]
    a = sd15.features(content)
    b = sd15.features(content, negative=True, **{})
    other = extract.extract_features(sd15.model, content, sd15.positive, empty, 0, 99, "auto")
    assert all(torch.equal(a.features[1][layer], b.features[1][layer]) for layer in a.layers)
    assert apart(sd15.sample(sd15.patch(a, other), content), sd15.sample(sd15.patch(a, a), content)) > 1e-3


# 14. After an exception or Cancel.

@pytest.mark.parametrize("error", [RuntimeError("out of memory"), comfy.model_management.InterruptProcessingException()])
def test_clean_after_an_interrupted_run(sd15, content, banks, error):
    plain, model = sd15.sample(sd15.model, content), sd15.patch(*banks, strength=0.7)
    wanted, before = sd15.sample(model, content), (snapshot(sd15.model), snapshot(model))

    def stop(step, *args):
        raise error

    with pytest.raises(type(error)):
        noise = comfy.sample.prepare_noise(content, 7)
        comfy.sample.sample(model, noise, 2, 2.0, "lcm", "simple", sd15.positive, sd15.negative, content, denoise=0.5, seed=7,
                            callback=stop, disable_pbar=True)
    assert (snapshot(sd15.model), snapshot(model)) == before
    assert torch.equal(sd15.sample(sd15.model, content), plain)
    assert torch.equal(sd15.sample(model, content), wanted)


@pytest.mark.parametrize("fails", [False, True])
def test_the_state_of_a_run_ends_with_it(sd15, content, banks, fails):
    during, after = [], []

    def watch(executor, *args, **kwargs):
        options = executor.class_obj.model_options["transformer_options"]
        try:
            return executor(*args, **kwargs)
        finally:
            after.append(host.KEY in options)

    def inside(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        during.append(host.KEY in transformer_options)
        if fails:
            raise RuntimeError("out of memory")
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    outer = sd15.model.clone()
    outer.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", watch)
    model = sd15.patch(*banks, model=outer)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", inside)
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        sd15.sample(model, content, steps=1)
    assert during == [True] and after == [False]


def test_clean_after_a_failed_extraction(sd15, content, banks):
    before, unet = snapshot(sd15.model), sd15.model.model.diffusion_model

    def fail(module, args):
        raise RuntimeError("out of memory")

    handle = unet.out.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        sd15.features(content)
    handle.remove()
    assert snapshot(sd15.model) == before
    again = sd15.features(content)
    assert all(torch.equal(again.features[s][layer], banks[0].features[s][layer]) for s in (0, 1) for layer in again.layers)


def test_cancel_before_extraction(sd15, content):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sd15.features(content)
    sd15.features(content)


# Cost.

def test_rows_through_the_unet(sd15, content, style, trace):
    """Four steps with guidance: 12 rows with extraction, 8 without; the published code runs 24."""
    with trace(sd15.model) as seen:
        model = sd15.patch(sd15.merge(sd15.features(content)), sd15.merge(sd15.features(style)))
        extraction = sum(len(call["slots"]) for call in seen.calls)
        sd15.sample(model, content, steps=4)
        first = sum(len(call["slots"]) for call in seen.calls)
        sd15.sample(model, content, steps=4)
    assert (extraction, first, sum(len(call["slots"]) for call in seen.calls)) == (4, 12, 20)


def test_a_merged_step_costs_what_a_plain_step_costs(sd15, tensor):
    target = tensor(1, 4, 16, 16, seed=3)
    model = sd15.patch(sd15.merge(sd15.features(target)), sd15.merge(sd15.features(tensor(1, 4, 16, 16, seed=4))))
    flops = []
    for run in (sd15.model, model):
        with FlopCounterMode(display=False) as counter:
            sd15.sample(run, target, steps=1)
        flops.append(counter.get_total_flops())
    assert flops[1] <= 1.05 * flops[0]
    with FlopCounterMode(display=False) as counter:
        sd15.sample(sd15.patch(*(sd15.features(target),) * 2), target, steps=1)
    assert counter.get_total_flops() > flops[1]


# The published code's guidance s acts as 1 - s (docs/papers.md). The host takes no guidance below 0: exchange the prompts.

def test_exchanged_prompts_are_guidance_one_minus_s(sd15, content, style, apart):
    exchanged = copy.copy(sd15)
    exchanged.positive, exchanged.negative = sd15.negative, sd15.positive

    def run(studio, cfg, sampled=None):
        model = studio.patch(studio.features(content), studio.features(style))
        return (sampled or studio).sample(model, content, steps=4, cfg=cfg)

    assert host_nodes.KSampler.INPUT_TYPES()["required"]["cfg"][1]["min"] == 0
    assert apart(run(exchanged, 2.0), run(sd15, -1.0)) < TOLERANCE
    assert apart(run(sd15, 2.0), run(sd15, -1.0)) > 0.1                         # ordinary guidance is another picture
    assert apart(run(sd15, 2.0, sampled=exchanged), run(sd15, -1.0)) > 0.01     # at the sampler alone is not enough
