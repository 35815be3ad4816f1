"""Decoupled classifier-free guidance (FastFace 4.1): identity and text get a guidance scale each.

Works on epsilon as the paper has it, or on anything affine in epsilon such as x - denoised = sigma * epsilon: the
coefficients add up to 1, so predictions of the clean picture may be combined just as well. Only `rescale` needs epsilon.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One prediction: with the positive prompt or the null one, with the identity or without."""

    text: bool
    identity: bool


EMPTY, TEXT, IDENTITY, FULL = Row(False, False), Row(True, False), Row(False, True), Row(True, True)

# The rows of each formulation in the order of its equation.
FORMULATIONS = {
    "DCG_2": (EMPTY, IDENTITY, FULL),
    "DCG_1": (EMPTY, TEXT, FULL),
    "DCG_3": (EMPTY, TEXT, IDENTITY),
}


def coefficients(formulation: str, alpha: float, beta: float) -> tuple[float, float, float]:
    """What the rows of a formulation are multiplied with. With u, t, i, ti for EMPTY, TEXT, IDENTITY, FULL:

    DCG_1, equation (16): u + alpha (t - u) + beta (ti - t)
    DCG_2, equations (5) and (17): u + alpha (i - u) + beta (ti - i)
    DCG_3, equation (18): u + alpha (t - u) + beta (i - u)
    """
    if formulation == "DCG_3":
        return 1 - alpha - beta, alpha, beta
    return 1 - alpha, alpha - beta, beta


def rows_needed(weights: Sequence[float], rescaled: bool) -> set[int]:
    """The rows that can change the result: those of a coefficient other than 0, and the second and third for `rescale`."""
    return {row for row, weight in enumerate(weights) if weight != 0} | ({1, 2} if rescaled else set())


def combine(rows: Sequence[torch.Tensor | None], weights: Sequence[float]) -> torch.Tensor:
    """The sum of weight * row. rows: [batch, ...] each, None where the weight is 0.

    A lone coefficient of 1 returns its row itself, so that guidance that does nothing changes nothing, bit for bit.
    """
    parts = [(row, weight) for row, weight in zip(rows, weights) if weight != 0]
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    return sum(weight * row for row, weight in parts)


def rescale(guided: torch.Tensor, second: torch.Tensor, third: torch.Tensor, phi: float) -> torch.Tensor:
    """Equation (6): guided * (phi (std second + std third) / (2 std guided) + 1 - phi); phi in [0, 1], 0 returns `guided`.

    guided, second, third: [batch, ...], epsilon times any common factor. Standard deviations are unbiased, per sample.
    A sample without deviation stays as it is.
    """
    if phi == 0:
        return guided
    wanted, found = (_std(second) + _std(third)) / 2, _std(guided)
    ratio = torch.where(found > 0, wanted / found, 1)
    return guided * (phi * ratio + 1 - phi)


def _std(x: torch.Tensor) -> torch.Tensor:
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)
