"""Values over sampling steps: one number per step of a few-step paper, stretched to any number of steps (FastFace 5.3)."""

import math
import re
from collections.abc import Sequence

import torch

ROUNDING = 1e-4  # samplers that work with log sigma come back to a step's sigma with this relative error at most


def parse_values(text: str, name: str, node: str) -> tuple[float, ...]:
    """The numbers of a widget such as ``1, 1.5, 1.5, 1``, separated by commas or spaces; at least one, all finite.

    Raises ValueError that names the widget `name` of `node` and what is not a number.
    """
    words = re.split(r"\s*[,，]\s*|\s+", text.strip())
    if words == [""]:
        raise ValueError(f"'{name}' of {node} is empty. Write one number, or one per step such as 1, 1.5, 1.5, 1.")
    return tuple(_number(word, text, name, node) for word in words)


def _number(word: str, text: str, name: str, node: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"'{name}' of {node} is '{text}', where '{word}' is not a number. Write one number, or one per step "
                         "such as 1, 1.5, 1.5, 1.")
    return value


def value_at(values: Sequence[float], step: int, steps: int) -> float:
    """The value of step 0 <= `step` < `steps`. The first and the last step take the first and the last value, those between
    share out the inner values in order. One step takes the first value; one value is a constant."""
    if step == 0:
        return values[0]
    if step == steps - 1 or len(values) <= 2:
        return values[-1]
    return values[1 + (step - 1) * (len(values) - 2) // (steps - 2)]


def step_of(sigma: float, sample_sigmas: torch.Tensor | None) -> int:
    """The step whose interval holds `sigma`: sigmas[step] >= sigma > sigmas[step + 1], or reversed for rising sigmas.

    sample_sigmas: [steps + 1], or None where the caller has no schedule (step 0). A sigma outside counts to the nearest step.
    Never counts calls: samplers may ask twice in a step, or between steps.
    """
    steps = step_count(sample_sigmas)
    if sample_sigmas is None:
        return 0
    starts = sample_sigmas[:steps]
    if sample_sigmas[0] < sample_sigmas[-1]:
        begun = starts <= sigma * (1 + ROUNDING)
    else:
        begun = starts >= sigma * (1 - ROUNDING)
    return min(max(int(begun.sum()) - 1, 0), steps - 1)


def step_count(sample_sigmas: torch.Tensor | None) -> int:
    """How many steps `step_of` tells apart, at least 1."""
    return 1 if sample_sigmas is None else max(len(sample_sigmas) - 1, 1)
