"""Law 1 and its mutants: every layer of every step against equations (6) to (10) written out in float64."""

from dataclasses import replace

import pytest
import torch

from portrait_atelier.attention import seac as maths
from portrait_atelier.attention.blocks import automatic_layers
from portrait_atelier.host import extract, seac as host

pytestmark = pytest.mark.quick
TOLERANCE = 1e-5
LAMBDA = 1.2


def error_of_law(studio, literal, trace, tensor, *, content=(1, 4, 8, 8), style=(1, 4, 8, 8), target=None, cycle=False,
                 start=0.0, end=1.0, steps=2, cfg=2.0, recorded=False, **sampling):
    """How far a real sampling run is from the literal equations; sizes and batches may differ between the three.

    With `recorded`, equations (8) to (10) are judged on the features that our node recorded.
    """
    content, style = tensor(*content, seed=3), tensor(*style, seed=4)
    target = content if target is None else tensor(*target, seed=5)
    banks = studio.features(content), studio.features(style)
    model = studio.patch(*banks, style_enhancement=LAMBDA, start=start, end=end, pairing="cycle" if cycle else "all")
    with trace(studio.model) as seen:
        studio.sample(model, target, steps=steps, cfg=cfg, **sampling)
    paper = literal(studio)
    if recorded:
        source, reference = ({slot: {layer: f.double() for layer, f in bank.items()} for slot, bank in bank.features.items()}
                             for bank in banks)
    else:
        source, reference = paper.features(content), paper.features(style)
    layers = set(automatic_layers(list(seen.modules)))
    sampler = studio.model.get_model_object("model_sampling")
    high, low = sampler.percent_to_sigma(start), sampler.percent_to_sigma(end)

    def controlled(number, sigma, layer, slot, row):
        if layer not in layers or not low <= sigma <= high:
            return None
        f_source, f_reference = source[slot][layer], reference[slot][layer]
        joined = f_reference[row % len(f_reference)] if cycle else f_reference.flatten(0, 1)
        return [(f_source[row % len(f_source)], 1.0), (joined, LAMBDA)]

    assert len(seen.calls) >= steps
    return paper.worst(seen, controlled)


def test_every_layer_and_step(studio, literal, trace, tensor):
    assert error_of_law(studio, literal, trace, tensor, recorded=True) < TOLERANCE


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_features_too(request, family, literal, trace, tensor):
    assert error_of_law(request.getfixturevalue(family), literal, trace, tensor) < TOLERANCE


def test_features_of_seventy_layers(sdxl, literal, tensor, apart):
    # Random weights amplify rounding over 70 layers: in plain float32 a picture alone and in a batch of two differ by 2e-5.
    latent = tensor(1, 4, 8, 8, seed=3)
    bank, paper = sdxl.features(latent), literal(sdxl).features(latent)
    assert len(bank.layers) == 35
    assert max(apart(bank.features[slot][layer], paper[slot][layer]) for slot in (0, 1) for layer in bank.layers) < 1e-4


def test_four_steps(sd15, literal, trace, tensor):
    assert error_of_law(sd15, literal, trace, tensor, steps=4) < TOLERANCE


@pytest.mark.parametrize("target", [(1, 4, 24, 16), (1, 4, 17, 16), (1, 4, 13, 19)])
def test_sizes_are_independent(sd15, literal, trace, tensor, target):
    error = error_of_law(sd15, literal, trace, tensor, content=(1, 4, 8, 12), style=(1, 4, 22, 10), target=target, steps=1)
    assert error < TOLERANCE


@pytest.mark.parametrize("batch, sources, references, cycle",
                         [(3, 1, 1, False), (3, 2, 1, False), (3, 3, 2, False), (3, 2, 2, True), (2, 3, 3, True)])
def test_batches(sd15, literal, trace, tensor, batch, sources, references, cycle):
    error = error_of_law(sd15, literal, trace, tensor, content=(sources, 4, 8, 8), style=(references, 4, 8, 12),
                         target=(batch, 4, 8, 8), cycle=cycle, steps=1)
    assert error < TOLERANCE


def test_without_guidance(sd15, literal, trace, tensor):
    assert error_of_law(sd15, literal, trace, tensor, cfg=1.0) < TOLERANCE


def test_without_a_source(sd15, literal, trace, tensor):
    """The picture's own tokens, the inputs of its queries, take the source's place."""
    target, style = tensor(1, 4, 8, 8, seed=5), tensor(1, 4, 8, 8, seed=4)
    reference = sd15.features(style)
    with trace(sd15.model) as seen:
        sd15.sample(sd15.patch(None, reference, style_enhancement=LAMBDA), target, steps=1)

    def controlled(number, sigma, layer, slot, row):
        if layer in reference.layers:
            return [(seen.calls[number]["layers"][layer]["queries"][seen.calls[number]["slots"].index(slot)], 1.0),
                    (reference.features[slot][layer][0].double(), LAMBDA)]

    assert literal(sd15).worst(seen, controlled) < TOLERANCE


def test_prompts_evaluated_in_separate_calls(make_studio, literal, trace, tensor):
    studio = make_studio("sd15")
    studio.positive = [[tensor(1, 100, 64, seed=1), {}]]  # 100 tokens beside 77 cannot share a call
    assert error_of_law(studio, literal, trace, tensor) < TOLERANCE


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_samplers_that_query_between_steps(sd15, literal, trace, tensor, sampler):
    assert error_of_law(sd15, literal, trace, tensor, sampler=sampler, scheduler="sgm_uniform") < TOLERANCE


@pytest.mark.parametrize("start, end", [(0.0, 0.7), (0.7, 1.0), (0.6, 0.8)])
def test_window(sd15, literal, trace, tensor, start, end):
    assert error_of_law(sd15, literal, trace, tensor, steps=4, start=start, end=end) < TOLERANCE


# Mutants: mistakes that are easy to make. Each must be far outside the tolerance.

def lambda_on_source(patch):
    keys = maths.joint_keys
    patch.setattr(maths, "joint_keys", lambda groups: keys([replace(groups[0], scale=groups[1].scale), replace(groups[1], scale=1.0)]))


def lambda_on_values(patch):
    patch.setattr(maths, "joint_values", lambda groups: torch.cat([group.scale * group.values for group in groups], 1))


def lambda_missing(patch):
    keys = maths.joint_keys
    patch.setattr(maths, "joint_keys", lambda groups: keys([replace(group, scale=1.0) for group in groups]))


def own_keys_kept(patch):
    shares = maths.group_shares
    patch.setattr(maths, "group_shares", lambda strength, references: (0.5, *shares(strength, references)[1:]))
    patch.setattr(maths, "logit_bias", lambda groups, per_group: None)


def banks_exchanged(patch, of=(1, 0)):
    group = host.Control.group
    patch.setattr(host.Control, "group", lambda self, name, bank, *a, **k: group(
        self, name, replace(bank, features={text: bank.features[other] for text, other in enumerate(of)}), *a, **k))


def one_bank_for_both(patch):
    banks_exchanged(patch, (0, 0))


def source_and_reference_exchanged(patch):
    present = maths.present
    def swapped(groups):
        source, reference = present(groups)
        return [replace(source, keys=reference.keys, values=reference.values), replace(reference, keys=source.keys, values=source.values)]
    patch.setattr(maths, "present", swapped)


def other_timestep(patch):
    sigma = extract.feature_sigma
    patch.setattr(extract, "feature_sigma", lambda sampling, timestep: sigma(sampling, timestep + 20))


def noise_not_shared(patch):
    patch.setattr(extract, "shared_noise", lambda shape, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1)))


@pytest.mark.parametrize("mutant", [lambda_on_source, lambda_on_values, lambda_missing, own_keys_kept, banks_exchanged,
                                    one_bank_for_both, source_and_reference_exchanged, other_timestep, noise_not_shared])
def test_mutants_fail(sd15, literal, trace, tensor, monkeypatch, mutant):
    mutant(monkeypatch)
    assert error_of_law(sd15, literal, trace, tensor, steps=1) > 1e-2


def test_shifted_window_fails(sd15, literal, trace, tensor, monkeypatch):
    def within(call, start, end):
        to_sigma = call.model.model_sampling.percent_to_sigma
        return to_sigma(end) <= call.sigma <= 0.7 * to_sigma(start)

    monkeypatch.setattr(host.Call, "within", within)
    assert error_of_law(sd15, literal, trace, tensor, steps=4, start=0.6, end=0.8) > 1e-2


def test_pairing_mutant_fails(sd15, literal, trace, tensor, monkeypatch):
    rows = host.Control.rows
    monkeypatch.setattr(host.Control, "rows", lambda self, stored, like, cycle: rows(self, stored, like, True).flip(0))
    error = error_of_law(sd15, literal, trace, tensor, content=(2, 4, 8, 8), style=(2, 4, 8, 8), target=(2, 4, 8, 8), cycle=True,
                         steps=1, cfg=1.0)
    assert error > 1e-2


# A to_k with bias, which no released UNet of these families has.

@pytest.fixture
def biased(make_studio, tensor):
    studio = make_studio("sd15", seed=1)
    for name, module in studio.model.model.diffusion_model.named_modules():
        if name.endswith("attn1.to_k"):
            module.bias = torch.nn.Parameter(tensor(module.out_features, seed=11), requires_grad=False)
    return studio


def test_biased_keys(biased, literal, trace, tensor):
    assert error_of_law(biased, literal, trace, tensor, steps=1) < TOLERANCE


def test_biased_keys_with_scaled_input_fail(biased, literal, trace, tensor, monkeypatch):
    def keys(groups):
        bias = tensor(groups[0].keys.shape[-1], seed=11)
        return torch.cat([group.scale * (group.keys - bias) + bias for group in groups], 1)

    monkeypatch.setattr(maths, "joint_keys", keys)
    assert error_of_law(biased, literal, trace, tensor, steps=1) > 1e-2
