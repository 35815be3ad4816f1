"""Style Enhancement Attention Control (ZePo section 4.2), one self-attention layer at a time.

The target's queries attend to groups of tokens: the source picture, the references, and (below strength 1) itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Stands for ln(0): far below any logit, yet finite, so that attention computed in chunks never meets -inf - -inf.
LOG_ZERO = -1e4
EXTRA_CHANNELS = 8  # fused attention kernels want head sizes in multiples of 8,
WIDEST = 128         # and some take none above this
LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class Group:
    """Tokens that one picture offers to the target's queries, as projected keys and values.

    keys, values: [rows, tokens, channels]
    scale:        the style enhancement coefficient lambda, for the keys only
    share:        relative attention mass, a number or [rows, queries] where it varies over the picture
    weights:      [rows, tokens], mass of each token within the group; None for equal ones
    logits:       [rows or 1, queries or 1, tokens], what the model's own mask adds to them; None for nothing
    name:         what the tokens are of, for a report
    """

    keys: torch.Tensor
    values: torch.Tensor
    scale: float = 1.0
    share: float | torch.Tensor = 1.0
    weights: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class ReferenceShare:
    """How much attention a reference asks for: p = `share` in [0, 1], a factor, and an optional mask [rows, queries]."""

    share: float = 0.5
    gain: float = 1.0
    mask: torch.Tensor | None = None


def group_shares(strength: float, references: Sequence[ReferenceShare]) -> tuple[float, float | torch.Tensor, list]:
    """Shares of (self, source, references): 1 - s, s(1 - p) and s*p for a single unmasked reference.

    Several references weigh p/(1-p) each against the source's 1. A reference with p = 1 displaces everything
    but its likes where its mask is 1. The shares add up to 1 at every query.
    """
    displaced: float | torch.Tensor = 1.0
    for reference in references:
        if reference.share == 1:
            displaced = displaced * (1 - _mask(reference))
    weights = [displaced]
    for reference in references:
        room = 1.0 if reference.share == 1 else displaced * reference.share / (1 - reference.share)
        weights.append(room * reference.gain * _mask(reference))
    total = sum(weights)
    # The common factor is taken first, so that equal weights give exactly equal shares.
    source, *others = [strength * (weight / total) for weight in weights]
    return 1 - strength, source, others


def _mask(reference: ReferenceShare) -> float | torch.Tensor:
    return 1.0 if reference.mask is None else reference.mask


def present(groups: Sequence[Group]) -> list[Group]:
    """Groups without those whose share is zero everywhere."""
    return [group for group in groups if torch.is_tensor(group.share) or group.share > 0]


def joint_keys(groups: Sequence[Group]) -> torch.Tensor:
    """Equation (8): K_sr = Concat(K_src, lambda * K_ref), [rows, tokens, channels].

    lambda multiplies projected keys: where to_k has no bias that is the same as before the projection, where models have one,
    or a norm behind it, it is what the paper means.
    """
    return torch.cat([group.keys if group.scale == 1 else group.scale * group.keys for group in groups], 1)


def joint_values(groups: Sequence[Group]) -> torch.Tensor:
    """Equation (8): V_sr = Concat(V_src, V_ref), [rows, tokens, channels]; lambda does not touch values."""
    return torch.cat([group.values for group in groups], 1)


def logit_bias(groups: Sequence[Group], per_group: bool) -> torch.Tensor | None:
    """ln(share) (+ ln of the token's weight) for the logits of equation (9), in float32.

    With `per_group` a group's share is divided among its tokens, so that its size stops mattering; otherwise each
    token gets its group's share, as in the paper. Returns [rows or 1, queries or 1, tokens], or None when every
    token gets the same bias, which the softmax ignores.
    """
    shares = []
    for group in groups:
        size = group.keys.shape[1]
        total = 1.0
        if per_group:
            total = size if group.weights is None else group.weights.sum(1, keepdim=True)
        shares.append((group.share, total, size))
    plain = all(not torch.is_tensor(group.share) and group.weights is None and group.logits is None for group in groups)
    if plain and len({share / total for share, total, _ in shares}) <= 1:
        return None

    device = groups[0].keys.device
    parts = []
    for group, (share, total, size) in zip(groups, shares):
        mass = torch.as_tensor(share, dtype=torch.float32, device=device)
        mass = mass[..., None] if mass.ndim else mass.view(1, 1, 1)
        if group.weights is None:
            mass = (mass / total).expand(-1, -1, size)
        else:
            mass = mass * (group.weights.float() / total)[:, None]
        part = mass.log()
        if group.logits is not None:
            part = part + group.logits.to(part)
        parts.append(part.clamp_min(LOG_ZERO))
    rows, queries = (max(part.shape[axis] for part in parts) for axis in (0, 1))
    return torch.cat([part.expand(rows, queries, -1) for part in parts], -1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, bias: torch.Tensor | None, attention,
           masked: bool = False) -> torch.Tensor:
    """Equations (9) and (10) with a bias on the logits: softmax(Q K^T / sqrt(d) + bias) V.

    q: [rows, queries, heads * d], k and v: [rows, tokens, heads * d]; bias as from `logit_bias`.
    `attention(q, k, v, **options)` is the host's attention function; it takes `mask` or `scale`.
    A bias that is the same for every query travels in extra channels, since masks rule out the fastest kernels. It is centred
    first, which softmax ignores: kernels that round keys to 8 bits do so in steps of their largest value. A bias that
    hides tokens (`masked`) stays a mask: beside LOG_ZERO the channels would have no precision left.
    """
    if bias is None:
        return attention(q, k, v)
    size = q.shape[-1] // heads
    if masked or bias.shape[1] > 1 or size <= WIDEST < size + EXTRA_CHANNELS:
        return attention(q, k, v, mask=bias.to(q.dtype).expand(q.shape[0], q.shape[1], -1))
    q, k, v = (x.unflatten(-1, (heads, size)) for x in (q, k, v))
    bias = bias[:, 0] - (bias.amax(-1) + bias.amin(-1)) / 2
    wanted = (bias * math.sqrt(size)).expand(k.shape[0], -1)
    high = wanted.to(k.dtype)
    low = (wanted - high.float()).to(k.dtype)  # what rounding took, in a channel of its own
    carrier = torch.stack([high, low], -1)[:, :, None].expand(-1, -1, heads, -1)
    none = EXTRA_CHANNELS - 2
    k = torch.cat([k, carrier, k.new_zeros(*k.shape[:3], none)], -1)
    q = torch.cat([q, q.new_ones(*q.shape[:3], 2), q.new_zeros(*q.shape[:3], none)], -1)
    v = torch.cat([v, v.new_zeros(*v.shape[:3], EXTRA_CHANNELS)], -1)
    out = attention(*(x.flatten(-2) for x in (q, k, v)), scale=size**-0.5)
    return out.unflatten(-1, (heads, size + EXTRA_CHANNELS))[..., :size].flatten(-2)


def attention_per_group(q: torch.Tensor, groups: Sequence[Group], heads: int, bias: torch.Tensor | None) -> torch.Tensor:
    """How much of equation (9)'s softmax falls on each group, the mean of the heads: [rows, queries, groups] in float32.

    q and bias as for `attend`, which computes with them. Here the softmax is written out, some queries at a time: what
    attention kernels give is its product with the values only.
    """
    sizes, keys = [group.keys.shape[1] for group in groups], joint_keys(groups)
    at_once = max(1, LOGITS_AT_ONCE // (heads * sum(sizes)))
    rows = []
    for row in range(q.shape[0]):
        asking, asked = (x[row].unflatten(-1, (heads, -1)).transpose(0, 1).float() for x in (q, keys))
        added = None if bias is None else bias[row % bias.shape[0]].expand(q.shape[1], -1)
        found = []
        for start in range(0, q.shape[1], at_once):
            part = slice(start, start + at_once)
            logits = asking[:, part] @ asked.transpose(-1, -2) * asking.shape[-1]**-0.5
            mass = (logits if added is None else logits + added[part]).softmax(-1).mean(0)
            found.append(torch.stack([each.sum(-1) for each in mass.split(sizes, -1)], -1))
        rows.append(torch.cat(found))
    return torch.stack(rows)
