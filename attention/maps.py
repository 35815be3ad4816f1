"""Attention manipulation (FastFace section 4.2): transforms of the attention maps of an adapter's decoupled branch.

A map A is [rows, heads, queries, tokens], the softmax over the few identity tokens. A transform needs the memory of a
handful of such maps, made for one layer at a time, and nothing else that grows with the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Both transforms stay below this many times full attention, as published.
HIGHEST = 10.0
EPSILON = 1e-6
LARGEST = torch.finfo(torch.float16).max


def attention_maps(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """A = softmax(Q K'^T / sqrt(d)) of equation (7), in float32: [rows, heads, queries, tokens].

    q: [rows, queries, heads * d]; k: [rows, tokens, heads * d] with few tokens (4 per person in FaceID): at 4096 queries and
    10 heads a map takes 0.7 MB per row.
    """
    rows, size = q.shape[0], q.shape[-1] // heads
    q, k = (x.unflatten(-1, (heads, size)).transpose(1, 2).flatten(0, 1) for x in (q, k))
    # alpha scales inside the product (beta drops the first argument), so float16 overflows late; the clamp takes what is left.
    logits = torch.baddbmm(q.new_empty(1), q, k.transpose(1, 2), alpha=size**-0.5, beta=0).float()
    return logits.clamp(-LARGEST, LARGEST).softmax(-1).unflatten(0, (rows, heads))


def split_heads(v: torch.Tensor, heads: int) -> torch.Tensor:
    """[rows, tokens, heads * d] -> [rows, heads, tokens, d]."""
    return v.unflatten(-1, (heads, -1)).transpose(1, 2)


def weigh_values(maps: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A V' of equation (7), per head and in the type of V': [rows, heads, queries, d]; v: [rows, tokens, heads * d]."""
    return maps.to(v.dtype) @ split_heads(v, maps.shape[1])


def join_heads(out: torch.Tensor) -> torch.Tensor:
    """[rows, heads, queries, d] -> [rows, queries, heads * d]."""
    return out.transpose(1, 2).flatten(2)


def scale_power(maps: torch.Tensor, power: float, scale: float) -> torch.Tensor:
    """Equation (8), AM1: min(s A^p, 10)."""
    return (scale * maps.pow(power)).clamp(max=HIGHEST)


def adain(x: torch.Tensor, reference: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """x with the mean and the (unbiased) standard deviation of `reference` along `dim`; finite where x is constant."""
    correction = 1 if x.shape[dim] > 1 else 0
    spread, mean = torch.std_mean(x, dim, correction=correction, keepdim=True)
    wanted_spread, wanted_mean = torch.std_mean(reference, dim, correction=correction, keepdim=True)
    return (x - mean) * wanted_spread / (spread + EPSILON) + wanted_mean


def align(x: torch.Tensor, reference: torch.Tensor, weight: float) -> torch.Tensor:
    """The interpolation of equation (10): (1 - w) x + w AdaIN(x, reference) along the last dimension, the tokens of one query."""
    return x if weight == 0 else (1 - weight) * x + weight * adain(x, reference)


def aligned_output(changed: torch.Tensor, maps: torch.Tensor, v: torch.Tensor, weight: float) -> torch.Tensor:
    """The same interpolation for the branch's output (appendix A.5), over the channels of a head: [rows, heads, queries, d].

        o' = (1 - w) o + w AdaIN(o, r)  with  o = changed V',  r = maps V'

    Mean and variance of o over the channels follow from those of the few tokens: mean o = A mean V', var o = A Cov(V') A^T.
    So o' is one product with V' as well, and nothing of its size is made beside it.
    """
    if weight == 0:
        return weigh_values(changed, v)
    values = split_heads(v, maps.shape[1]).float()
    centre = values.mean(-1, keepdim=True)
    deviations = values - centre
    covariance = deviations @ deviations.transpose(-1, -2) / max(values.shape[-1] - 1, 1)

    def spread(a: torch.Tensor) -> torch.Tensor:
        return ((a @ covariance) * a).sum(-1, keepdim=True).clamp(min=0).sqrt()

    gain = 1 - weight + weight * spread(maps) / (spread(changed) + EPSILON)
    mean = torch.lerp(changed @ centre, maps @ centre, weight)
    return (gain * changed).to(v.dtype) @ deviations.to(v.dtype) + mean.to(v.dtype)


def quantile_over_queries(maps: torch.Tensor, quantile: float) -> torch.Tensor:
    """Q_p(A) of equation (9), per row, head and token: [rows, heads, 1, tokens], linear between neighbours.

    torch.quantile refuses more than 16 million values and sorts them all.
    """
    position = quantile * (maps.shape[-2] - 1)
    low = int(position)
    below = maps.kthvalue(low + 1, -2, keepdim=True).values
    if low == position:
        return below
    return below.lerp(maps.kthvalue(low + 2, -2, keepdim=True).values, position - low)


def stretched(x: torch.Tensor, across_batch: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """norm(x) of equation (9), (x - min) / (max - min) over heads and queries of each row and token, and where min = max.

    With `across_batch` the extrema are those of all rows, as in the published code.
    """
    dims = (0, 1, 2) if across_batch else (1, 2)
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    flat = high <= low
    return (x - low) / torch.where(flat, 1, high - low), flat


def scheduled_softmax(maps: torch.Tensor, sharpness: float, scale: float, quantile: float = 0.65, adain_weight: float = 0.3,
                      first_tokens: Sequence[int] = (0,), published: bool = False) -> torch.Tensor:
    """Equations (9) and (10), AM2, in the form that works: docs/papers.md lists what differs from the print and why.

        g(A) = min(s N(sigmoid(+d (N(A) - Q_p(A)))), 10)        the paper's sign inverts the map
        A'   = g(A);  for the first token of each person  A' = max_queries(x) - x  with  x = g(1 - A)   (appendix A.5)
        A''  = (1 - w) A' + w AdaIN(A', A)                      over the tokens of one query

    maps: [rows, heads, queries, tokens]; sharpness is d, scale s, adain_weight w in [0, 1], quantile p in [0, 1].
    Rows do not influence each other. A token whose map is constant in a row keeps it. `published` takes the extrema over
    the whole batch and rounds Q to float16, as the published code does.
    """
    maps = maps.float()
    inverted = torch.zeros(maps.shape[-1], dtype=torch.bool, device=maps.device)
    inverted[list(first_tokens)] = True

    x = torch.where(inverted, 1 - maps, maps)
    threshold = quantile_over_queries(x, quantile).clamp(min=EPSILON)
    if published:
        threshold = threshold.half().float()
    normal, flat = stretched(x, published)
    shifted, saturated = stretched(torch.sigmoid(sharpness * (normal - threshold)), published)
    x = (scale * shifted).clamp(max=HIGHEST)
    x = torch.where(inverted, x.amax(-2, keepdim=True) - x, x)
    return align(torch.where(flat | saturated, maps, x), maps, adain_weight)


@dataclass(frozen=True)
class ScalePower:
    """f_sp of equation (8), ready for one layer at one step."""

    power: float
    scale: float

    def __call__(self, maps: torch.Tensor, v: torch.Tensor, first_tokens: Sequence[int]) -> torch.Tensor:
        """f(A) V', [rows, heads, queries, d], from A as of `attention_maps` and V' [rows, tokens, heads * d]."""
        return weigh_values(scale_power(maps, self.power, self.scale), v)


@dataclass(frozen=True)
class ScheduledSoftmax:
    """f_ss of equations (9) and (10), ready for one layer at one step."""

    sharpness: float
    scale: float
    quantile: float = 0.65
    adain_weight: float = 0.3
    published: bool = False

    def __call__(self, maps: torch.Tensor, v: torch.Tensor, first_tokens: Sequence[int]) -> torch.Tensor:
        """f(A) V', aligned to A V' over the channels of a head."""
        changed = scheduled_softmax(maps, self.sharpness, self.scale, self.quantile, self.adain_weight, first_tokens, self.published)
        return aligned_output(changed, maps, v, self.adain_weight)
