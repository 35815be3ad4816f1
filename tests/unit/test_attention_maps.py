"""Equations (7) to (10) of FastFace against a literal float64 implementation, loop by loop, and the mistakes that must show."""

import math
import statistics

import pytest
import torch

from portrait_atelier.attention import maps as maths

D, S = 7.5, 1.55


def random_maps(rows=2, heads=3, queries=20, tokens=8, seed=0, sharp=2.0):
    logits = sharp * torch.randn(rows, heads, queries, tokens, generator=torch.Generator().manual_seed(seed))
    return logits.softmax(-1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The oracle: plain Python on nested lists, one number at a time.

def quantile(values, p):
    ordered, position = sorted(values), p * (len(values) - 1)
    low = math.floor(position)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def literal_adain(x, r):
    if len(x) == 1:
        return [r[0]]
    mean_x, mean_r = statistics.fmean(x), statistics.fmean(r)
    std_x, std_r = (math.sqrt(sum((a - m) ** 2 for a in v) / (len(v) - 1)) for v, m in ((x, mean_x), (r, mean_r)))
    return [(a - mean_x) * std_r / (std_x + 1e-6) + mean_r for a in x]


def blend(x, r, w):
    return [(1 - w) * a + w * b for a, b in zip(x, literal_adain(x, r))]


def literal_am2(maps, d, s, p=0.65, w=0.3, first=(0,), published=False):
    rows, heads, queries, tokens = maps.shape
    a = maps.double().tolist()
    out = torch.zeros(maps.shape, dtype=torch.float64).tolist()
    for j in range(tokens):
        source = [[[(1 - a[b][h][i][j]) if j in first else a[b][h][i][j] for i in range(queries)] for h in range(heads)] for b in range(rows)]
        groups = [list(range(rows))] if published else [[b] for b in range(rows)]
        for group in groups:
            everything = [x for b in group for head in source[b] for x in head]
            low, high = min(everything), max(everything)
            if low == high:
                for b in group:
                    for h in range(heads):
                        for i in range(queries):
                            out[b][h][i][j] = a[b][h][i][j]
                continue
            shifted = {}
            for b in group:
                for h in range(heads):
                    q = max(quantile(source[b][h], p), 1e-6)
                    if published:
                        q = torch.tensor(q).half().double().item()
                    for i in range(queries):
                        shifted[b, h, i] = 1 / (1 + math.exp(min(-d * ((source[b][h][i] - low) / (high - low) - q), 700)))
            bottom, top = min(shifted.values()), max(shifted.values())
            for b in group:
                for h in range(heads):
                    g = [min(s * (shifted[b, h, i] - bottom) / (top - bottom), 10) for i in range(queries)]
                    if j in first:
                        g = [max(g) - x for x in g]
                    for i in range(queries):
                        out[b][h][i][j] = g[i]
    return torch.tensor([[[blend(out[b][h][i], a[b][h][i], w) for i in range(queries)] for h in range(heads)] for b in range(rows)],
                        dtype=torch.float64)


def literal_output(changed, maps, v, w):
    """o = A''V', o_plain = A V', aligned over the channels of one head."""
    rows, heads, queries, tokens = maps.shape
    v = v.double().unflatten(-1, (heads, -1))
    out = torch.zeros(rows, heads, queries, v.shape[-1], dtype=torch.float64)
    for b in range(rows):
        for h in range(heads):
            for i in range(queries):
                new, old = (sum(m[b, h, i, j].double() * v[b, j, h] for j in range(tokens)).tolist() for m in (changed, maps))
                out[b, h, i] = torch.tensor(blend(new, old, w) if w else new, dtype=torch.float64)
    return out


def error(a, b):
    return ((a.double() - b).abs().max() / b.abs().max()).item()


# Agreement.

@pytest.mark.parametrize("power, scale", [(1.3, 1.45), (1.3, 1.55), (0.5, 2), (2, 50)])
def test_scale_power(power, scale):
    maps = random_maps()
    expected = torch.tensor([min(scale * a ** power, 10) for a in maps.double().flatten().tolist()], dtype=torch.float64).view(maps.shape)
    assert error(maths.scale_power(maps, power, scale), expected) < 1e-6


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("d, s, p, w, first, queries", [
    (7.5, 1.0, 0.65, 0.3, (0,), 20), (5, 1.55, 0.65, 0.3, (0, 4), 20), (5, 1.55, 0.65, 0.0, (0,), 17), (5, 1.55, 0.65, 1.0, (), 16),
    (30, 12, 0.2, 0.3, (0, 4), 9), (5, 1.55, 0.0, 0.3, (0,), 5), (5, 1.55, 1.0, 0.3, (0,), 5), (-5, 1.55, 0.65, 0.3, (0,), 20),
])
def test_scheduled_softmax(d, s, p, w, first, queries, published):
    maps = random_maps(queries=queries)
    expected = literal_am2(maps, d, s, p, w, first, published)
    # Two float32 roundings of Q may fall on either side of a step of float16.
    assert error(maths.scheduled_softmax(maps, d, s, p, w, first, published), expected) < (5e-3 if published else 5e-6)


def test_the_output_is_aligned_too():
    maps, v = random_maps(), random(2, 8, 15)
    for transform, changed in [(maths.ScheduledSoftmax(D, S), literal_am2(maps, D, S)),
                               (maths.ScheduledSoftmax(D, S, adain_weight=0.0), literal_am2(maps, D, S, w=0.0))]:
        assert error(transform(maps, v, (0,)), literal_output(changed, maps, v, transform.adain_weight)) < 5e-6
    plain = maths.ScalePower(1.3, S)(maps, v, (0,))
    assert error(plain, literal_output(S * maps.double() ** 1.3, maps, v, 0)) < 1e-6


def test_the_output_is_aligned_where_channels_share_a_mean():
    """Values far from zero: the mean must not drown the spread."""
    maps, v = random_maps(), random(2, 8, 15) + 30
    expected = literal_output(literal_am2(maps, D, S), maps, v, 0.3)
    assert error(maths.ScheduledSoftmax(D, S)(maps, v, (0,)), expected) < 5e-6
    half = maths.ScheduledSoftmax(D, S)(maps, v.half(), (0,))
    assert half.dtype == torch.float16 and error(half, expected) < 2e-3


def test_maps_and_values():
    q, k, v = random(2, 20, 15, seed=1), random(2, 8, 15, seed=2), random(2, 8, 15, seed=3)
    maps = maths.attention_maps(q, k, 3)
    qd, kd, vd = (x.double().unflatten(-1, (3, 5)) for x in (q, k, v))
    expected = (torch.einsum("bihc,bjhc->bhij", qd, kd) / math.sqrt(5)).softmax(-1)
    assert maps.dtype == torch.float32 and error(maps, expected) < 1e-6
    assert error(maths.join_heads(maths.weigh_values(maps, v)), torch.einsum("bhij,bjhc->bihc", expected, vd).flatten(2)) < 1e-6


# Rows.

def test_rows_are_independent():
    maps = random_maps(rows=3)
    together = maths.scheduled_softmax(maps, D, S)
    assert torch.equal(maths.scheduled_softmax(maps[[2, 0, 1]], D, S), together[[2, 0, 1]])
    for row in range(3):
        assert torch.equal(maths.scheduled_softmax(maps[row:row + 1], D, S)[0], together[row])


def test_no_sharpness_leaves_the_map():
    maps = random_maps()
    assert error(maths.scheduled_softmax(maps, 0.0, S, adain_weight=0.0), maps.double()) < 1e-6


def test_a_threshold_is_never_zero():
    """Where most queries pay a token no attention its quantile is 0; the published 1e-6 shows where sharpness makes it count."""
    maps = random_maps(rows=1, heads=1, queries=20, tokens=3)
    maps[:, :, :15, 1], maps[:, :, 15, 1] = 0, 2e-6
    assert error(maths.scheduled_softmax(maps, 2e5, S), literal_am2(maps, 2e5, S)) < 1e-4


def test_published_coupling_is_not():
    maps = random_maps(rows=3)
    together = maths.scheduled_softmax(maps, D, S, published=True)
    assert error(maths.scheduled_softmax(maps[:1], D, S, published=True)[0], together[0].double()) > 1e-2


# What the transforms are for.

def test_a_focused_map_keeps_its_shape_and_gains_contrast():
    """The sign: a token that looks at the face must still look at the face, more so, with the first token inverted there and back."""
    maps = random_maps(rows=1, heads=1, queries=400, seed=5)
    changed = maths.scheduled_softmax(maps, 5, S, adain_weight=0.0)
    for token in range(8):
        pair = torch.stack([maps[0, 0, :, token], changed[0, 0, :, token]])
        assert torch.corrcoef(pair)[0, 1] > 0.8, token


# Degenerate maps and half precision.

CASES = {
    "constant": torch.full((2, 3, 20, 4), 0.25),
    "one query": random_maps(queries=1),
    "one token": torch.ones(2, 3, 20, 1),
    "one constant row": torch.cat([torch.full((1, 3, 20, 4), 0.25), random_maps(rows=1, tokens=4)]),
    "zeros and ones": torch.eye(4).repeat(2, 3, 5, 1),
    "all on one token": torch.tensor([1.0, 0, 0, 0]).expand(2, 3, 20, 4),
}


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("d", [0, 5, 7.5, 1e4, -1e4])
@pytest.mark.parametrize("case", CASES)
def test_degenerate_maps_are_finite(case, d, published):
    maps = CASES[case]
    v = random(maps.shape[0], maps.shape[-1], 12)
    for transform in (maths.ScheduledSoftmax(d, S, published=published), maths.ScalePower(1.3, S), maths.ScalePower(0.0, 1e6)):
        assert torch.isfinite(transform(maps, v, (0,))).all()


@pytest.mark.parametrize("case", ["constant", "one token", "all on one token"])
def test_constant_maps_stay(case):
    torch.testing.assert_close(maths.scheduled_softmax(CASES[case], D, S), CASES[case], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e2, 2e3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(dtype, size):
    q, k, v = ((size * random(2, n, 12, seed=n)).to(dtype) for n in (50, 4, 4))
    maps = maths.attention_maps(q, k, 3)
    for transform in (maths.ScheduledSoftmax(D, S), maths.ScheduledSoftmax(D, S, published=True), maths.ScalePower(1.3, S)):
        assert torch.isfinite(transform(maps, v, (0,))).all()


# Mutants.

def sigmoid_sign(patch):
    patch.setattr(torch, "sigmoid", lambda x: 1 / (1 + x.exp()))


def no_inversion(patch):
    patch.setattr(maths, "scheduled_softmax", lambda maps, d, s, p, w, first, published, f=maths.scheduled_softmax: f(maps, d, s, p, w, (), published))


def adain_over_queries(patch):
    patch.setattr(maths, "adain", lambda x, r, f=maths.adain: f(x, r, -2))


def adain_exchanged(patch):
    patch.setattr(maths, "adain", lambda x, r, f=maths.adain: f(r, x))


def output_not_aligned(patch):
    patch.setattr(maths, "aligned_output", lambda changed, maps, v, weight: maths.weigh_values(changed, v))


def output_aligned_to_itself(patch):
    patch.setattr(maths, "aligned_output", lambda changed, maps, v, weight, f=maths.aligned_output: f(changed, changed, v, weight))


def weights_exchanged(patch):
    patch.setattr(maths, "align", lambda x, r, w, f=maths.align: f(x, r, 1 - w))


def scale_on_values(patch):
    patch.setattr(maths, "split_heads", lambda v, heads, f=maths.split_heads: f(v * S, heads))


def quantile_of_all_heads(patch):
    def over_all(maps, p):
        return maps.transpose(1, 2).flatten(1, 2).quantile(p, 1)[:, None, None]
    patch.setattr(maths, "quantile_over_queries", over_all)


@pytest.mark.parametrize("mutant", [sigmoid_sign, no_inversion, adain_over_queries, adain_exchanged, output_not_aligned,
                                    output_aligned_to_itself, weights_exchanged, scale_on_values, quantile_of_all_heads])
def test_mutants_fail(monkeypatch, mutant):
    maps, v = random_maps(), random(2, 8, 15)
    expected = literal_output(literal_am2(maps, D, S), maps, v, 0.3)
    mutant(monkeypatch)
    assert error(maths.ScheduledSoftmax(D, S)(maps, v, (0,)), expected) > 1e-2
