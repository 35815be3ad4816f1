"""Checks that ComfyUI leaves to the node: it accepts NaN anywhere, and any number from a link."""

import math


def check_range(node: str, name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless low <= value <= high; NaN and infinity never are."""
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"'{name}' of {node} is {value}. It must lie between {low} and {high}.")


def check_values(node: str, name: str, values: tuple[float, ...], low: float, high: float) -> tuple[float, ...]:
    """The per-step values themselves; raises ValueError unless low <= value <= high for each."""
    for value in values:
        check_range(node, name, value, low, high)
    return values
