"""Scale-Power and Scheduled-Softmax Attention inside the model: equation (7) in every layer and step, and what must not change."""

import logging

import comfy.sample
import pytest
import torch

from portrait_atelier.attention import maps
from portrait_atelier.host import attention_maps as host, decoupled, face_adapter
from portrait_atelier.nodes.scale_power_attention import ScalePowerAttention
from portrait_atelier.nodes.scheduled_softmax_attention import ScheduledSoftmaxAttention

TOLERANCE = 1e-5
D, S = (7.5, 5.0, 5.0, 5.0), (1.0, 1.55, 1.55, 1.55)


@pytest.fixture
def latent(tensor):
    return tensor(1, 4, 8, 8, seed=3)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "portrait_atelier")
    return lambda: " ".join(record.getMessage() for record in caplog.records)


def am1(model, **options):
    return ScalePowerAttention.execute(model, **options)[0]


def am2(model, **options):
    return ScheduledSoftmaxAttention.execute(model, **options)[0]


# The literal transforms, float64, for the heads of one row.

def literal_am1(down, up, power=1.3):
    def transform(a, v, layer, sigma):
        s = {"input": down, "output": up, "middle": None}[layer[0]]
        return a @ v if s is None else torch.minimum(s * a ** power, torch.tensor(10.0).double()) @ v
    return transform


def literal_am2(step_of, first=(0,), d=D, s=S, w=0.3, p=0.65):
    def adain(x, r):
        std_x, std_r = x.std(-1, keepdim=True), r.std(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) * std_r / (std_x + 1e-6) + r.mean(-1, keepdim=True)

    def transform(a, v, layer, sigma):
        if layer[0] == "middle":
            return a @ v
        step, out = step_of(sigma), torch.empty_like(a)
        for token in range(a.shape[-1]):
            x = 1 - a[..., token] if token in first else a[..., token]
            q = x.quantile(p, -1, keepdim=True).clamp(min=1e-6)
            y = 1 / (1 + torch.exp(-d[step] * ((x - x.min()) / (x.max() - x.min()) - q)))
            y = torch.clamp(s[step] * (y - y.min()) / (y.max() - y.min()), max=10)
            out[..., token] = y.max(-1, keepdim=True).values - y if token in first else y
        out = (1 - w) * out + w * adain(out, a)
        return (1 - w) * (out @ v) + w * adain(out @ v, a @ v)
    return transform


def error_of_law(faces, law, cross_trace, latent, patch, literal, people=1, steps=2, **sampling):
    """literal(step_of) gives the transform; step_of finds the place of a sigma among those of the calls."""
    identity = faces.identity(people)
    model = patch(faces.apply(identity, weight=0.8))
    with cross_trace(faces.studio.model) as seen:
        faces.studio.sample(model, latent, steps=steps, **{"denoise": 1.0, **sampling})
    sigmas = list(dict.fromkeys(call["sigma"] for call in seen.calls))
    return law.error(faces, seen, [(identity, 0.8, 1, law.always, 1.0)], literal(sigmas.index))


def error_of_am1(*fixtures, **options):
    return error_of_law(*fixtures, am1, lambda step_of: literal_am1(1.55, 1.45), **options)


def error_of_am2(*fixtures, people=1, **options):
    return error_of_law(*fixtures, am2, lambda step_of: literal_am2(step_of, range(0, 4 * people, 4)), people=people, **{"steps": 4, **options})


@pytest.fixture
def stage(faces, law, cross_trace, latent):
    return faces, law, cross_trace, latent


def test_scale_power(stage):
    assert error_of_am1(*stage) < TOLERANCE


def test_scale_power_in_sixteen_layers(sixteen, law, cross_trace, latent):
    assert error_of_am1(sixteen, law, cross_trace, latent, steps=1) < TOLERANCE


@pytest.mark.parametrize("people, cfg", [(1, 2.0), (2, 1.0)])
def test_scheduled_softmax(stage, people, cfg):
    assert error_of_am2(*stage, people=people, cfg=cfg) < TOLERANCE


def test_the_preset_of_the_paper_exchanges_the_parts(stage):
    error = error_of_law(*stage, lambda model: am1(model, preset="paper"), lambda step_of: literal_am1(1.45, 1.55))
    assert error < TOLERANCE


def test_one_part_only(stage):
    def only_up(a, v, layer, sigma, full=literal_am1(1, 1.45)):
        return full(a, v, layer, sigma) if layer[0] == "output" else a @ v

    assert error_of_law(*stage, lambda model: am1(model, layers="u"), lambda step_of: only_up) < TOLERANCE


@pytest.mark.parametrize("sampler, queries", [("euler", 4), ("heun", 7), ("dpm_2", 7)])
def test_the_step_comes_from_sigma(stage, sampler, queries):
    """Four values over four steps, though some samplers ask twice per step, or between steps."""
    faces, law, cross_trace, latent = stage
    model = am1(faces.apply(weight=0.8), power=1.0, scale_down="1, 2, 3, 4", scale_up="1, 2, 3, 4")
    with cross_trace(faces.studio.model) as seen:
        faces.studio.sample(model, latent, steps=4, denoise=1.0, sampler=sampler, scheduler="sgm_uniform")
    grid = comfy.samplers.KSampler(faces.studio.model, 4, "cpu", sampler, "sgm_uniform", 1.0).sigmas.tolist()

    def transform(a, v, layer, sigma):
        step = max(i for i in range(4) if sigma <= grid[i] * (1 + 1e-6))
        return a @ v if layer[0] == "middle" else torch.minimum((step + 1) * a, torch.tensor(10.0).double()) @ v

    assert len(seen.calls) == queries
    assert law.error(faces, seen, [(faces.identity(), 0.8, 1, law.always, 1.0)], transform) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9])
def test_any_number_of_steps(faces, latent, steps):
    for patch in (am1, am2):
        assert torch.isfinite(faces.studio.sample(patch(faces.apply()), latent, steps=steps, denoise=1.0, sampler="euler")).all()


# Mutants.

def parts_exchanged(patch):
    patch.setattr(host, "ScalePower", lambda *a, f=host.ScalePower: f(*a[:-2], a[-1], a[-2]))


def scale_on_values_too(patch):
    patch.setattr(maps, "weigh_values", lambda a, v, f=maps.weigh_values: f(a, 1.5 * v))


def middle_transformed(patch):
    patch.setattr(host, "select_layers", lambda text, layers, auto=None: layers)


def keys_and_values_exchanged(patch):
    patch.setattr(face_adapter, "attend", lambda q, k, v, *rest, f=decoupled.attend: f(q, v, k, *rest))


@pytest.mark.parametrize("mutant", [parts_exchanged, scale_on_values_too, middle_transformed, keys_and_values_exchanged])
def test_mutants_of_scale_power_fail(stage, monkeypatch, mutant):
    mutant(monkeypatch)
    assert error_of_am1(*stage, steps=1) > 1e-3


def wrong_sign(patch):
    patch.setattr(torch, "sigmoid", lambda x: 1 / (1 + x.exp()))


def nothing_inverted(patch):
    patch.setattr(maps, "scheduled_softmax", lambda *a, f=maps.scheduled_softmax: f(*a[:5], (), *a[6:]))


def only_the_first_person_inverted(patch):
    patch.setattr(maps, "scheduled_softmax", lambda *a, f=maps.scheduled_softmax: f(*a[:5], (0,), *a[6:]))


def adain_over_queries(patch):
    patch.setattr(maps, "adain", lambda x, r, f=maps.adain: f(x, r, -2))


def output_not_aligned(patch):
    patch.setattr(maps, "aligned_output", lambda changed, a, v, weight: maps.weigh_values(changed, v))


def schedule_shifted(patch):
    patch.setattr(host.Call, "value", lambda self, values, f=host.Call.value: f(self, values[::-1]))


@pytest.mark.parametrize("mutant", [wrong_sign, nothing_inverted, only_the_first_person_inverted, adain_over_queries, output_not_aligned,
                                    schedule_shifted])
def test_mutants_of_scheduled_softmax_fail(stage, monkeypatch, mutant):
    mutant(monkeypatch)
    assert error_of_am2(*stage, people=2, steps=2) > 1e-3


# What must not change.

def test_the_identity_transform_is_the_plain_branch(faces, latent, identity_transform):
    assert torch.equal(faces.studio.sample(am1(faces.apply()), latent), faces.studio.sample(faces.apply(), latent))


@pytest.mark.parametrize("patch, off", [
    (am1, {"power": 1.0, "scale_down": "1", "scale_up": "1, 1"}), (am1, {"layers": ""}), (am2, {"layers": ""}),
    (am1, {"start": 0.5, "end": 0.5}), (am2, {"start": 0.7, "end": 0.2})])
def test_off_is_the_model_before(faces, latent, patch, off):
    before = faces.apply()
    model = patch(before, **off)
    assert not any(slot.transforms for slot in decoupled.occupants(model).values())
    assert torch.equal(faces.studio.sample(model, latent), faces.studio.sample(before, latent))


@pytest.mark.parametrize("patch, off", [(am1, {"start": 0.0, "end": 0.3}), (am2, {"start": 0.0, "end": 0.3}),
                                        (am1, {"power": 1.0, "scale_down": "1, 1, 2", "scale_up": "1, 1, 2"})])
def test_steps_without_effect_are_those_of_the_model_before(faces, latent, patch, off):
    before, steps = faces.apply(), {"steps": 2, "denoise": 0.5}
    if "power" in off:  # two steps read the values 1 and 2 of the ends; the first step only is compared
        steps = {"steps": 1, "denoise": 1.0}
    assert torch.equal(faces.studio.sample(patch(before, **off), latent, **steps), faces.studio.sample(before, latent, **steps))


@pytest.mark.parametrize("patch", [am1, am2])
def test_rows_are_independent(faces, tensor, apart, patch):
    latent, model = tensor(3, 4, 8, 8, seed=3), patch(faces.apply())

    def run(rows, model=model):
        return comfy.sample.sample(model, tensor(3, 4, 8, 8, seed=4)[rows], 2, 2.0, "euler", "simple", faces.studio.positive,
                                   faces.studio.negative, latent[rows], disable_pbar=True, seed=1)

    together = run([0, 1, 2])
    assert apart(run([2, 0, 1]), together[[2, 0, 1]]) < TOLERANCE
    assert apart(run([1])[0], together[1]) < TOLERANCE
    if patch is am2:
        coupled = am2(faces.apply(), coupling="published")
        assert apart(run([1], coupled)[0], run([0, 1, 2], coupled)[1]) > 1e-3
        assert decoupled.coupled(coupled.model_options["transformer_options"]) and not decoupled.coupled(model.model_options["transformer_options"])


def test_published_coupling_warns_where_calls_are_split(make_studio, make_faces, tensor, latent, warnings):
    studio = make_studio("nano")
    faces = make_faces(studio)
    model = am2(faces.apply(), coupling="published")
    studio.sample(model, latent)
    assert "separate calls" not in warnings()
    studio.positive = [[tensor(1, 100, 64, seed=1), {}]]
    studio.sample(model, latent)
    assert warnings().count("separate calls") == 1


@pytest.mark.parametrize("patch", [am1, am2])
def test_runs_repeat_and_the_model_before_stays(faces, latent, patch):
    before = faces.apply(faces.identity(2))
    plain, slots = faces.studio.sample(before, latent), dict(decoupled.occupants(before))
    model = patch(before)
    first = faces.studio.sample(model, latent)
    assert not torch.equal(first, plain)
    assert torch.equal(faces.studio.sample(before, latent), plain) and decoupled.occupants(before) == slots
    assert torch.equal(faces.studio.sample(model, latent), first)


# Several nodes.

def test_the_later_node_wins_in_its_layers(faces, latent, warnings):
    before = faces.apply()
    both = am1(am2(before), layers="u")
    assert "Scale-Power Attention replaces Scheduled-Softmax Attention in 2 layers from u0.0 on" in warnings()
    assert torch.equal(faces.studio.sample(both, latent), faces.studio.sample(am1(am2(before, layers="d"), layers="u"), latent))
    assert torch.equal(faces.studio.sample(am1(am2(before)), latent), faces.studio.sample(am1(before), latent))


def test_an_adapter_behind_the_transform_is_transformed_too(faces, latent):
    one, two = faces.identity(), faces.identity(seed=50)
    behind = faces.apply(two, am1(faces.apply(one)))
    before = am1(faces.apply(two, faces.apply(one)))
    assert torch.equal(faces.studio.sample(behind, latent), faces.studio.sample(before, latent))


def test_with_seac(faces, latent, tensor):
    studio = faces.studio
    banks = studio.features(latent), studio.features(tensor(1, 4, 8, 8, seed=4))
    one = studio.sample(am2(faces.apply(model=studio.patch(*banks))), latent)
    assert torch.equal(one, studio.sample(studio.patch(*banks, model=am2(faces.apply())), latent))


# What is refused.

@pytest.mark.parametrize("patch", [am1, am2])
def test_no_adapter(faces, latent, patch):
    with pytest.raises(ValueError, match="Attention found no face adapter on this model. Put it behind Face Adapter Apply"):
        patch(faces.studio.model)
    taken = faces.studio.model.clone()
    taken.set_model_attn2_replace(lambda q, k, v, extra: q, "input", 1)
    with pytest.raises(ValueError, match="found no face adapter"):
        patch(taken)


@pytest.mark.parametrize("patch", [am1, am2])
def test_an_adapter_that_is_off_is_no_error(faces, latent, patch):
    for adapter in (faces.apply(weight=0.0), faces.apply(faces.identity(found=False)), faces.apply(start=1.0)):
        assert torch.equal(faces.studio.sample(patch(adapter), latent), faces.studio.sample(faces.studio.model, latent))


@pytest.mark.parametrize("text", ["", "one", "1, x", "1, nan", "1, 99"])
def test_schedules_that_are_not_numbers(faces, text):
    with pytest.raises(ValueError, match="'scale_down' of Scale-Power Attention"):
        am1(faces.apply(), scale_down=text)
    for name in ("scale", "sharpness"):
        with pytest.raises(ValueError, match=f"'{name}' of Scheduled-Softmax Attention"):
            am2(faces.apply(), **{name: text.replace("99", "9999")})


def test_numbers_out_of_range(faces):
    with pytest.raises(ValueError, match="'power' of Scale-Power"):
        am1(faces.apply(), power=float("nan"))
    with pytest.raises(ValueError, match="'quantile' of Scheduled-Softmax"):
        am2(faces.apply(), quantile=1.5)


def test_layers_that_do_not_exist(faces):
    with pytest.raises(ValueError, match="Layer 'd7' in 'layers' is outside this model"):
        am1(faces.apply(), layers="d7")


def test_layers_without_an_adapter(faces, latent, warnings):
    model = am1(faces.apply(skip_middle=True), layers="m")
    assert "no adapter acts in the layers 'm'" in warnings()
    assert torch.equal(faces.studio.sample(model, latent), faces.studio.sample(faces.apply(skip_middle=True), latent))
