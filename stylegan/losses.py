"""The losses of MMFS, equations (1) to (8) of the paper, each a mean over the batch of terms of single pictures.

So the gradients of a batch are the sum of those of its parts, weighted by their share: micro-batches change nothing.
(6) is no loss but the forward pass of phase 3: decode(encode(photo), style_from_clip(F(reference))).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

PERCEPTUAL = 4.     # lambda_perc of (1)
STRUCTURE = 4.      # of (5): what the published code's 0.5 times a sum over its batch of 8 comes to


def reconstruction(fake: torch.Tensor, target: torch.Tensor, fake_taps: list, target_taps: list,
                   perceptual: float = PERCEPTUAL) -> torch.Tensor:
    """(1) L1(I_rec, I_ref) + lambda_perc sum_l L1(D^l(I_rec), D^l(I_ref)), each L1 a mean.

    Pictures [B, 3, S, S]; taps are the discriminator's features [B, C, h, w], the same layers of both.
    """
    features = sum(F.l1_loss(mine, theirs) for mine, theirs in zip(fake_taps, target_taps, strict=True))
    return F.l1_loss(fake, target) + perceptual * features


def fool(fake: torch.Tensor) -> torch.Tensor:
    """(2) for the generator, non-saturating: softplus(-D(fake)); logits [B, 1]."""
    return F.softplus(-fake).mean()


def tell_apart(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """(2) for the discriminator: half of softplus(D(fake)) + softplus(-D(real)); logits [B, 1]."""
    return (F.softplus(fake).mean() + F.softplus(-real).mean()) / 2


def steepness(real: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """R1's E |grad D(real)|^2; `real` [B, 3, S, S] requires gradients and has led to `logits` [B, 1]."""
    slope, = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()


def self_similarity(keys: torch.Tensor) -> torch.Tensor:
    """(3) S_ij = cos(K_i, K_j); keys [B, tokens, C] of DINO's last block -> [B, tokens, tokens]."""
    keys = F.normalize(keys, dim=-1)
    return keys @ keys.transpose(1, 2)


def structure(fake: torch.Tensor, photo: torch.Tensor) -> torch.Tensor:
    """(4) How far self-similarities [B, tokens, tokens] are apart: the mean of squares.

    The paper's Frobenius norm depends on the number of tokens; its code takes this mean, summed over the batch.
    """
    return F.mse_loss(fake, photo)


def direction(fake: torch.Tensor, photo: torch.Tensor, target: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    """(7)'s second term: 1 - cos(E(fake) - E(photo), E(target) - anchor).

    Unit CLIP features: fake, photo [B, C]; target, anchor [C]. The anchor is where the photos lie: for a style picture
    the mean of E(photo) over the whole batch, for a text E("photo"). Differences are not made unit.
    """
    return (1 - F.cosine_similarity(fake - photo, (target - anchor)[None], dim=-1)).mean()


def span(tokens: torch.Tensor) -> torch.Tensor:
    """(8)'s U [C, min(C, tokens)]: orthonormal, spans the tokens [tokens, C] of the style picture."""
    unit = F.normalize(tokens, dim=-1)
    return torch.linalg.svd(unit, full_matrices=False).Vh.mH


def projection(tokens: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """(8)'s last term: mean |U U^T t - t| of the fake's tokens [B, tokens, C], made unit; basis U [C, k].

    0 where all of them lie in the span. The paper takes raw tokens, its code unit ones.
    """
    unit = F.normalize(tokens, dim=-1)
    return (unit @ basis @ basis.mT - unit).abs().mean()
