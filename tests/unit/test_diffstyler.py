"""DiffStyler's bookkeeping without a model: rows, windows, layers, mask weights."""

import pytest
import torch

from portrait_atelier.attention.injection import Sites, parse_sites, plan, split, step_rows
from portrait_atelier.attention.masks import mask_on_grid
from portrait_atelier.guidance import regions

SD = [("input", n, 0) for n in (1, 2, 4, 5, 7, 8)] + [("middle", 0, 0)] + [("output", n, 0) for n in range(3, 12)]
SDXL = ([("input", n, i) for n, depth in ((4, 2), (5, 2), (7, 10), (8, 10)) for i in range(depth)] + [("middle", 0, i) for i in range(10)]
        + [("output", n, i) for n in range(6) for i in range(10 if n < 3 else 2)])
GRID = range(981, 0, -20)  # ddim_uniform, 50 steps
DEFAULTS = dict(preset="paper", feature_until=401, attention_until=501, guided=True, base=False, keep_source=False)


def sites(text="auto", preset="paper"):
    return parse_sites(text, preset, SD, 12, 3)


def blocks(layers):
    return sorted({layer[1] for layer in layers})


def test_the_papers_layers():
    found = sites()
    assert found.features == set(range(4, 12))
    assert blocks(found.self_attention) == blocks(found.cross_attention) == list(range(3, 12))
    assert all(layer[0] == "output" for layer in found.self_attention)
    assert sites("f=4-11;sa=3-11;ca=3-11") == found


def test_the_published_codes_layers():
    found = sites(preset="reference")
    assert found.features == {4} and blocks(found.self_attention) == list(range(4, 12)) and not found.cross_attention


def test_sdxl_layers():
    found = parse_sites("auto", "paper", SDXL, 9, 3)
    assert found.features == set(range(4, 9)) and len(found.self_attention) == len(found.cross_attention) == 36


@pytest.mark.parametrize("text, features, own, cross", [
    ("", [], [], []), ("f=4", [4], [], []), ("SA = 3, 5-6 ; f=", None, None, None), ("sa=u1-8", [], list(range(4, 12)), []), ("ca=m0,3", [], [], [0, 3]),
    ("ca=11;f=0,4-5", [0, 4, 5], [], [11]),
])
def test_layer_texts(text, features, own, cross):
    if features is None:
        with pytest.raises(ValueError, match="'f=' in 'layers'"):
            sites(text)
        return
    found = sites(text)
    assert (sorted(found.features), blocks(found.self_attention), blocks(found.cross_attention)) == (features, own, cross)


@pytest.mark.parametrize("text, message", [
    ("f=12", "'12' of 'f'.*blocks 0-11"), ("f=5-4", "'5-4' of 'f'"), ("sa=3-12", "'3-12' of 'sa'"), ("f=u1", "'u1' of 'f'"), ("x=3", "'x=3'.*f=4-11"),
    ("4-11", "'4-11' in 'layers' is not understood"), ("sa=u9", "'u9'.*outside"),
])
def test_bad_layer_texts(text, message):
    with pytest.raises(ValueError, match=message):
        sites(text)


@pytest.mark.parametrize("count, options, rows", [
    (1, {}, 130), (2, {}, 230), (5, {}, 530), (1, {"base": True}, 230), (2, {"base": True}, 330), (1, {"guided": False}, 80),
    (1, {"preset": "reference", "base": True}, 280), (1, {"preset": "reference", "base": True, "feature_until": 0}, 300),
    (1, {"feature_until": 1000, "attention_until": 1000}, 100), (1, {"feature_until": 0}, 150),
])
def test_rows_of_fifty_steps(count, options, rows):
    """1 + 2R rows in the window, 2R after it: what R styles cost."""
    options = {**DEFAULTS, **options}
    assert sum(len(step_rows(t, count, sites(preset=options["preset"]), **options)) for t in GRID) == rows


def test_rows_of_few_steps():
    for timesteps in ((999, 749, 499, 249), (999, 759, 499, 259)):
        for count, rows in ((1, 8), (2, 12)):
            assert sum(len(step_rows(t, count, sites(), **{**DEFAULTS, "guided": False, "keep_source": True})) for t in timesteps) == rows


def test_rows_of_a_step():
    row = step_rows(941, 2, sites(), **DEFAULTS)
    assert [(r.prompt, r.branch) for r in row] == [("source", 0), ("negative", 1), ("1", 1), ("negative", 2), ("2", 2)]
    assert all(r.kinds == {"f", "sa", "ca"} and r.source == 0 and r.ratio == 1 for r in row[1:])
    assert {r.kinds for r in step_rows(421, 2, sites(), **DEFAULTS)[1:]} == {frozenset("f")}
    assert not any(r.kinds or r.prompt == "source" for r in step_rows(381, 2, sites(), **DEFAULTS))
    assert [r.kinds for r in step_rows(501, 1, sites("ca=3"), **DEFAULTS)] == [frozenset(), frozenset(["ca"]), frozenset(["ca"])]
    assert len(step_rows(981, 1, Sites(frozenset(), frozenset(), frozenset()), **DEFAULTS)) == 2, "nothing to inject, no source"


def test_rows_of_the_published_code():
    row = step_rows(301, 1, sites(preset="reference"), **{**DEFAULTS, "preset": "reference", "base": True})
    assert [(r.prompt, r.branch, sorted(r.kinds)) for r in row] == [
        ("source", 0, []), ("negative", 0, ["f", "sa"]), ("base", 0, ["f", "sa"]), ("negative", 1, []), ("1", 1, [])]
    assert row[1].ratio == pytest.approx(0.602)
    row = step_rows(801, 2, sites(preset="reference"), **{**DEFAULTS, "preset": "reference", "base": True})
    assert len(row) == 9 and [r.source for r in row] == [0, 0, 0, 0, 1, 1, 0, 2, 2] and row[1].ratio == 1
    row = step_rows(801, 2, sites(preset="reference"), **{**DEFAULTS, "preset": "reference", "base": True, "keep_source": True})
    assert [r.branch for r in row if r.prompt == "source"] == [0, 1, 2], "a source that is kept anyway is there once"


@pytest.mark.parametrize("options", [{}, {"preset": "reference", "base": True}, {"base": True}, {"keep_source": True, "guided": False}], ids=str)
@pytest.mark.parametrize("timestep", [941, 441, 41])
def test_splitting_keeps_every_row_with_its_source(options, timestep):
    options = {**DEFAULTS, **options}
    rows = step_rows(timestep, 3, sites(preset=options["preset"]), **options)
    assert split(rows, 0) == [rows] == split(rows, 100)
    for limit in range(1, 8):
        calls = split(rows, limit)
        edits = [r for call in calls for r in call if r.prompt != "source"]
        assert edits == [r for r in rows if r.prompt != "source"]
        assert {r for call in calls for r in call} == set(rows)
        for call in calls:
            assert len(call) <= max(limit, 2) and len(set(call)) == len(call)
            made = plan(call, frozenset([1, 2, 3]))  # raises where a source is missing or a branch is scattered
            written = {i for injection in made.injections for i in range(injection.rows.start, injection.rows.stop)}
            assert written == {i for i, r in enumerate(call) if r.kinds}
            assert not written & {injection.source for injection in made.injections}
            for branch, where in made.routes.items():
                assert [i for i, r in enumerate(call) if r.branch == branch] == list(range(where.start, where.stop))


def test_plans_refuse_what_cannot_be_routed():
    rows = step_rows(941, 2, sites(), **DEFAULTS)
    with pytest.raises(ValueError, match="source of branch 0"):
        plan(rows[1:], frozenset())
    with pytest.raises(ValueError, match="not neighbours"):
        plan((rows[1], rows[3], rows[2]), frozenset([1]))


# 8. Mask weights.

@pytest.mark.parametrize("styles", [1, 2, 5])
def test_weights_sum_to_one(styles):
    masks = torch.rand(styles, 6, 7, generator=torch.Generator().manual_seed(styles), dtype=torch.float64)
    weights, outside = regions.region_weights(masks)
    literal = [masks[i] * torch.stack([1 - m for m in [torch.zeros_like(masks[0]), *masks[i + 1:]]]).prod(0) for i in range(styles)]
    assert torch.allclose(weights, torch.stack(literal)) and torch.allclose(outside, (1 - masks).prod(0))
    assert torch.allclose(weights.sum(0) + outside, torch.ones(6, 7, dtype=torch.float64)) and weights.min() >= 0


def test_hard_masks_last_wins():
    masks = (torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    weights, outside = regions.region_weights(masks)
    for y in range(8):
        for x in range(8):
            last = max((i for i in range(4) if masks[i, y, x]), default=None)
            assert outside[y, x] == (last is None)
            assert [float(w) for w in weights[:, y, x]] == [float(i == last) for i in range(4)]


def test_area_averaging():
    constant = torch.full((1, 37, 53), 0.3)
    assert torch.allclose(mask_on_grid(constant, (8, 9)), torch.tensor(0.3))
    mask = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mask_on_grid(mask, (8, 8)).view(8, 8), mask.view(8, 8, 8, 8).mean((1, 3)), atol=1e-6)
    assert torch.allclose(mask_on_grid(mask, (8, 8)).mean(), mask.mean())


def test_mixture_and_background():
    generator = torch.Generator().manual_seed(0)
    predictions, base = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(3, 4, 4, generator=generator)
    masks = torch.rand(2, 4, 4, generator=generator)
    masks[:, :2] = 0
    weights, outside = regions.region_weights(masks)
    mixed = regions.mixture(predictions, weights, outside)
    inside = outside < 1
    literal = (weights[0] * predictions[0] + weights[1] * predictions[1]) / (1 - outside)
    assert torch.isfinite(mixed).all() and torch.allclose(mixed[:, inside], literal[:, inside])
    assert torch.allclose(regions.mixture(predictions, weights, outside, base), (weights[:, None] * predictions).sum(0) + outside * base)
    x, source = torch.randn(2, 1, 3, 4, 4, generator=generator)
    kept = regions.keep_outside(x, source, outside)
    assert torch.equal(kept[..., :2, :], source[..., :2, :])
    assert torch.allclose(kept, source + (1 - outside) * (x - source))
    assert torch.equal(regions.keep_outside(x, source, torch.zeros(4, 4)), x)


def test_euler_is_ddim():
    """(9) in sigma equals DDIM in z: z' = sqrt(a') z_0 + sqrt(1 - a') epsilon."""
    a, after = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    z, epsilon = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z0 = (z - (1 - a).sqrt() * epsilon) / a.sqrt()
    sigma = lambda a: ((1 - a) / a).sqrt()
    x = regions.euler_step(z / a.sqrt(), z0, sigma(a), sigma(after))
    assert torch.allclose(x * after.sqrt(), after.sqrt() * z0 + (1 - after).sqrt() * epsilon)


def test_shared_noise_is_exact_where_nothing_changes():
    z0, d = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(regions.shared_noise_step(d, d, z0, torch.full((4, 4), 0.4)), z0)
    assert torch.equal(regions.shared_noise_step(d + 1, d, z0, torch.ones(4, 4)), z0)
    assert torch.allclose(regions.shared_noise_step(d + 1, d, z0, torch.zeros(4, 4)), z0 + 1)


def test_shared_noise_of_half_precision_subtracts_in_full():
    edit, source = (torch.full((1, 2, 2), value, dtype=torch.float16) for value in (2048.0, 0.5))
    moved = regions.shared_noise_step(edit, source, torch.zeros(1, 2, 2), torch.zeros(2, 2))
    assert moved.dtype == torch.float32 and torch.equal(moved, torch.full((1, 2, 2), 2047.5))
