import math

import pytest
import torch

from portrait_atelier.attention import seac
from portrait_atelier.attention.masks import mask_on_grid
from portrait_atelier.attention.seac import Group, ReferenceShare, attend, group_shares, logit_bias

HEADS, SIZE = 2, 5


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_attention(q, k, v, mask=None, scale=None):
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
    if mask is not None:
        logits = logits + mask[:, None]
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(-2)


# Shares.

@pytest.mark.parametrize("strength, share", [(1, 0.5), (0.4, 0.3), (1, 0), (1, 1), (0.7, 1)])
def test_shares_of_one_reference(strength, share):
    own, source, (reference,) = group_shares(strength, [ReferenceShare(share)])
    assert own == pytest.approx(1 - strength)
    assert source == pytest.approx(strength * (1 - share)) and reference == pytest.approx(strength * share)


def test_several_references_weigh_against_the_source():
    own, source, (a, b, c) = group_shares(0.8, [ReferenceShare(0.5), ReferenceShare(0.75), ReferenceShare(0.5, gain=0.5)])
    assert own + source + a + b + c == pytest.approx(1)
    assert (a / source, b / source, c / source) == pytest.approx((1, 3, 0.5))


def test_a_share_of_one_displaces_all_others():
    _, source, (a, b, c) = group_shares(1.0, [ReferenceShare(1.0), ReferenceShare(0.5), ReferenceShare(1.0)])
    assert source == b == 0 and a == c == 0.5


def test_shares_of_one_with_different_masks():
    """Each displaces the source where its own mask is, and gives way to the other where that one's is."""
    first, second = torch.tensor([[0.0, 1.0, 0.0, 0.5, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 0.5, 1.0]])
    _, source, (a, b) = group_shares(1.0, [ReferenceShare(1.0, mask=first), ReferenceShare(1.0, mask=second)])
    torch.testing.assert_close(source, torch.tensor([[1.0, 0.0, 0.0, 0.2, 0.0]]))
    torch.testing.assert_close(a, torch.tensor([[0.0, 1.0, 0.0, 0.4, 0.5]]))
    torch.testing.assert_close(b, torch.tensor([[0.0, 0.0, 1.0, 0.4, 0.5]]))


def test_masked_shares_per_query():
    mask = torch.tensor([[0.0, 0.5, 1.0]])
    own, source, (reference,) = group_shares(0.6, [ReferenceShare(0.5, mask=mask)])
    torch.testing.assert_close(own + source + reference, torch.ones(1, 3))
    torch.testing.assert_close(reference / source, mask)
    own, source, (reference,) = group_shares(0.6, [ReferenceShare(1.0, mask=mask)])
    torch.testing.assert_close(source, 0.6 * (1 - mask))
    torch.testing.assert_close(reference, 0.6 * mask)


# Bias.

def groups(shares=(0.5, 0.5), sizes=(3, 4), weights=(None, None)):
    return [Group(*[random(2, n, HEADS * SIZE, seed=n)] * 2, share=s, weights=w) for n, s, w in zip(sizes, shares, weights)]


def test_equal_shares_need_no_bias():
    assert logit_bias(groups(), per_group=False) is None
    assert logit_bias(groups(sizes=(4, 4)), per_group=True) is None
    assert logit_bias(groups(shares=(0.7,), sizes=(3,)), per_group=False) is None


@pytest.mark.parametrize("per_group, expected", [(False, [0.2] * 3 + [0.8] * 4), (True, [0.2 / 3] * 3 + [0.8 / 4] * 4)])
def test_bias_is_the_logarithm_of_the_share(per_group, expected):
    bias = logit_bias(groups(shares=(0.2, 0.8)), per_group)
    torch.testing.assert_close(bias, torch.tensor(expected).log()[None, None])


def test_weights_of_merged_tokens():
    weights = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]])
    bias = logit_bias(groups(weights=(weights, None)), per_group=False)
    torch.testing.assert_close(bias[:, 0, :3], (0.5 * weights).log())
    bias = logit_bias(groups(weights=(weights, None)), per_group=True)
    torch.testing.assert_close(bias.exp()[..., :3].sum(-1), torch.full((2, 1), 0.5))
    torch.testing.assert_close(bias.exp()[..., 3:].sum(-1), torch.full((2, 1), 0.5))


def test_zero_shares_leave_or_weigh_nothing():
    assert len(seac.present(groups(shares=(0.0, 1.0)))) == 1
    mask = torch.tensor([[0.0, 1.0]]).expand(2, -1)
    bias = logit_bias(groups(shares=(1 - mask, mask)), per_group=False)
    assert bias.shape == (2, 2, 7) and torch.isfinite(bias).all()
    assert torch.equal(bias.softmax(-1)[0, 0, 3:], torch.zeros(4)) and torch.equal(bias.softmax(-1)[0, 1, :3], torch.zeros(3))


# Attention.

def weighed_by_hand(q, k, v, mass):
    """softmax with each token's exponential multiplied by its mass, in float64."""
    q, k, v = (x.double().unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for x in (q, k, v))
    e = (q @ k.transpose(-1, -2) / math.sqrt(SIZE)).exp() * mass.double()[:, None]
    return (e / e.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(-2)


def test_bias_in_channels_equals_weighted_softmax():
    q, k, v = random(2, 6, 10, seed=1), random(2, 7, 10, seed=2), random(2, 7, 10, seed=3)
    bias = logit_bias(groups(shares=(0.1, 0.9)), per_group=False)
    out = attend(q, k, v, HEADS, bias, plain_attention)
    torch.testing.assert_close(out.double(), weighed_by_hand(q, k, v, bias.exp()), rtol=1e-5, atol=1e-6)
    assert (out - attend(q, k, v, HEADS, None, plain_attention)).abs().max() > 1e-2


def test_bias_per_query_equals_weighted_softmax():
    q, k, v = random(2, 6, 10, seed=1), random(2, 7, 10, seed=2), random(2, 7, 10, seed=3)
    mask = torch.rand(2, 6, generator=torch.Generator().manual_seed(4))
    bias = logit_bias(groups(shares=(1 - mask, mask)), per_group=False)
    out = attend(q, k, v, HEADS, bias, plain_attention)
    torch.testing.assert_close(out.double(), weighed_by_hand(q, k, v, bias.exp()), rtol=1e-5, atol=1e-6)


def test_small_shares_survive_half_precision():
    """One bfloat16 channel would lose two decimals of ln(share) * sqrt(d)."""
    k, v = torch.zeros(1, 7, 10), random(1, 7, 10, seed=3)
    bias = logit_bias([Group(*[torch.zeros(1, n, 10)] * 2, share=s) for n, s in ((3, 0.0137), (4, 0.9863))], per_group=False)
    seen = []

    def listening(q, k, v, scale):
        q, k = (x.float().unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k))
        seen.append((q @ k.transpose(-1, -2) * scale)[0, 0, 0])
        return plain_attention(q.transpose(1, 2).flatten(-2), k.transpose(1, 2).flatten(-2), v.float(), scale=scale)

    attend(torch.zeros(1, 1, 10).bfloat16(), k.bfloat16(), v.bfloat16(), HEADS, bias, listening)
    torch.testing.assert_close(seen[0] - seen[0].max(), bias[0, 0] - bias.max(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen[0].max(), -seen[0].min())  # centred


def test_a_kernel_of_8_bits_keeps_its_precision():
    """Kernels that round keys of a head to 8 bits take steps of the largest value: the bias must not be that."""
    size, (q, k, v) = 40, (random(1, n, HEADS * 40, seed=n) for n in (60, 50, 40))
    k, v = torch.cat([k, v[:, :14]], 1), random(1, 64, HEADS * size, seed=5)
    bias = logit_bias([Group(*[k[:, :32]] * 2, share=s) for s in (0.02, 0.98)], per_group=False)

    def rounded(x):
        x = x.unflatten(-1, (HEADS, -1))
        step = x.abs().amax((1, 3), keepdim=True) / 127
        return ((x / step).round() * step).flatten(-2)

    def eight_bits(q, k, v, scale):
        return plain_attention(rounded(q), rounded(k), v, scale=scale)

    exact = attend(q, k, v, HEADS, bias, plain_attention)
    error = (attend(q, k, v, HEADS, bias, eight_bits) - exact).norm() / exact.norm()
    assert error < 0.04, error


@pytest.mark.parametrize("size, widest", [(120, 128), (128, 128), (160, 168)])
def test_no_head_gets_wider_than_kernels_take(size, widest):
    """Heads of up to 128 channels stay so, with a mask where the extra channels would not fit; wider ones have their kernel."""
    q, k, v = random(1, 6, HEADS * size, seed=1), random(1, 7, HEADS * size, seed=2), random(1, 7, HEADS * size, seed=3)
    bias = logit_bias(groups(shares=(0.1, 0.9)), per_group=False)[:1]
    seen = []

    def narrow(q, k, v, **options):
        seen.append((q.shape[-1] // HEADS, "mask" in options))
        return plain_attention(q, k, v, **options)

    out = attend(q, k, v, HEADS, bias, narrow)
    assert seen == [(min(size + seac.EXTRA_CHANNELS, widest), size == 128)]
    logits = torch.stack([q[..., i * size:(i + 1) * size] @ k[..., i * size:(i + 1) * size].mT for i in range(HEADS)], 1) / size**0.5
    expected = (logits + bias[:, None]).softmax(-1) @ v.unflatten(-1, (HEADS, size)).transpose(1, 2)
    torch.testing.assert_close(out, expected.transpose(1, 2).flatten(-2), rtol=1e-4, atol=1e-5)


def test_joint_keys_and_values():
    a, b = random(1, 2, 4, seed=1), random(1, 3, 4, seed=2)
    both = [Group(a, a + 1), Group(b, b, scale=1.5)]
    assert torch.equal(seac.joint_keys(both), torch.cat([a, 1.5 * b], 1))
    assert torch.equal(seac.joint_values(both), torch.cat([a + 1, b], 1))


# Masks.

def test_masks_keep_their_orientation():
    mask = torch.zeros(1, 64, 128)
    mask[:, :32, 64:] = 1
    grid = mask_on_grid(mask, (4, 8)).view(4, 8)
    expected = torch.zeros(4, 8)
    expected[:2, 4:] = 1
    assert torch.equal(grid, expected)


def test_masks_average_and_fit_odd_grids():
    mask = torch.rand(2, 50, 70, generator=torch.Generator().manual_seed(0))
    grid = mask_on_grid(mask, (7, 9))
    assert grid.shape == (2, 63) and grid.min() >= 0 and grid.max() <= 1
    torch.testing.assert_close(mask_on_grid(mask, (1, 1))[:, 0], mask.mean((1, 2)))
    assert torch.equal(mask_on_grid(torch.full((1, 2, 2), 1.7), (5, 3)), torch.ones(1, 15))


def test_attention_per_group_is_the_softmax_summed(monkeypatch):
    """In float64 at once, against what is done for some queries at a time."""
    generator = torch.Generator().manual_seed(0)
    q, a, b = (torch.randn(2, tokens, 24, generator=generator) for tokens in (7, 5, 3))
    groups = [Group(a, a, share=0.3), Group(b, b, scale=1.4, share=torch.linspace(0.1, 0.9, 7).expand(2, -1))]
    bias = logit_bias(groups, per_group=True)
    keys = torch.cat([a, 1.4 * b], 1)
    one, two = (x.unflatten(-1, (3, 8)).transpose(1, 2).double() for x in (q, keys))
    mass = (one @ two.transpose(-1, -2) / 8**0.5 + bias[:, None]).softmax(-1).mean(1)
    expected = torch.stack([mass[..., :5].sum(-1), mass[..., 5:].sum(-1)], -1)
    for room in (1, 60, 2**24):
        monkeypatch.setattr(seac, "LOGITS_AT_ONCE", room)
        assert torch.allclose(seac.attention_per_group(q, groups, 3, bias).double(), expected, atol=1e-6)
    assert torch.allclose(seac.attention_per_group(q, groups, 3, None).sum(-1), torch.ones(2, 7))
