"""What a node refuses by itself: numbers outside the ranges of its schema, texts that no model would understand.

ComfyUI checks ranges and choices when a run is queued, but NaN passes there, and so does any number from a link. Texts that
have a grammar are checked twice: when a run is queued (validate_inputs), so that a typing error costs no work, and when they
arrive through a link.
"""

import functools
import inspect
import math
from collections.abc import Callable

from comfy_api.latest import io

from ..attention import blocks
from ..guidance.schedule import parse_values

Check = tuple[Callable[[str, str, object], object], str, object]
LAYERS = "a comma list such as u1-8, d3, m, u0.2-9, where d, m and u are encoder, middle and decoder blocks"


def check_range(node: str, name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless low <= value <= high; NaN and infinity never are."""
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"'{name}' of {node} is {value}. It must lie between {shown(low)} and {shown(high)}.")


def shown(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def in_range(execute):
    """An `execute` that first raises ValueError for a number outside its range in the node's schema."""
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def run(cls, *args, **values):
        given = signature.bind(cls, *args, **values).arguments
        schema = cls.SCHEMA or cls.GET_SCHEMA()  # ComfyUI sets it when it loads the pack
        for item in schema.inputs:
            if isinstance(item, (io.Int.Input, io.Float.Input)) and item.id in given:
                check_range(schema.display_name, item.id, given[item.id], item.min, item.max)
        return execute(cls, *args, **values)

    return run


def verdict(node: str, *checks: Check) -> bool | str:
    """What validate_inputs answers: True, or the message of the first check(node, name, value) that raises ValueError.

    A value of None comes through a link: it is checked when it is there. Name no input in validate_inputs whose range or
    choices ComfyUI is to check: it leaves those to the node then. It shows the message at every input that is named.
    """
    for check, name, value in checks:
        if value is not None:
            try:
                check(node, name, value)
            except ValueError as error:
                return str(error)
    return True


def step_values(node: str, name: str, text: str, low: float, high: float) -> tuple[float, ...]:
    """The numbers of a text such as ``1, 1.5, 1.5, 1``; raises ValueError for others, and unless low <= value <= high for each."""
    values = parse_values(text, name, node)
    for value in values:
        check_range(node, name, value, low, high)
    return values


def layer_names(node: str, name: str, text: str) -> None:
    """Raises ValueError for a list of attention layers that fits no model; whether this model has them, only a run can tell."""
    wrong = blocks.impossible(text)
    if wrong is not None:
        raise ValueError(f"'{name}' of {node} is '{text}', where '{wrong}' names no layer of any model. Write auto, all or {LAYERS}.")
