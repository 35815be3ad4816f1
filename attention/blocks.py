"""Names for the attention layers of a network, and the small grammar users select them with.

A layer is ``(part, block, index)``: ``("output", 4, 0)`` is the first transformer layer of a UNet's output block 4,
``("block", 4, 0)`` that of a transformer's fifth block. The grammar counts only the blocks that have attention, from 0
in each part, as the common guidance nodes do.
"""

import re

LayerId = tuple[str, int, int]

PARTS = {"d": "input", "m": "middle", "u": "output", "b": "block"}
SPEC = re.compile(r"([dmub])(?:(\d+)(?:-\1?(\d+))?)?(?:\.(\d+)(?:-(\d+))?)?")


def layers_by_block(layers: list[LayerId], part: str) -> list[list[LayerId]]:
    """The layers of one part, grouped by attention-bearing block, both in model order."""
    blocks: dict[int, list[LayerId]] = {}
    for layer in layers:
        if layer[0] == part:
            blocks.setdefault(layer[1], []).append(layer)
    return list(blocks.values())


def automatic_layers(layers: list[LayerId]) -> list[LayerId]:
    """Every decoder layer of a UNet but the first, as published (8 to 15 of 16 in SD1.5). All of a transformer."""
    return [layer for layer in layers if layer[0] == "output"][1:] + [layer for layer in layers if layer[0] == "block"]


def valid_range(layers: list[LayerId]) -> str:
    """What a user may write for this model, e.g. ``auto, all, d0-5, m0, u0-8`` or ``auto, all, b0-29``."""
    words = ["auto", "all"]
    for letter, part in PARTS.items():
        count = len(layers_by_block(layers, part))
        if count:
            words.append(f"{letter}0" if count == 1 else f"{letter}0-{count - 1}")
    return ", ".join(words)


def layer_name(layer: LayerId, layers: list[LayerId]) -> str:
    """The name a user may write for one layer of the model, e.g. ``u1.0``."""
    letter = next(letter for letter, part in PARTS.items() if part == layer[0])
    number, block = next((i, block) for i, block in enumerate(layers_by_block(layers, layer[0])) if layer in block)
    return f"{letter}{number}.{block.index(layer)}"


def select_layers(text: str, layers: list[LayerId], auto: list[LayerId] | None = None) -> list[LayerId]:
    """Layers named by a comma list such as ``auto``, ``all``, ``u``, ``d3``, ``u1-8``, ``u1-u8`` or ``u0.2-9``.

    `layers` is every layer of the model in forward order; so is the result, without repeats. `auto` overrides what
    that word stands for.
    An empty text selects nothing. Raises ValueError that names the token and the valid range.
    """
    chosen = set()
    for token in _tokens(text):
        if token == "auto":
            chosen.update(automatic_layers(layers) if auto is None else auto)
        elif token == "all":
            chosen.update(layers)
        else:
            chosen.update(_token_layers(token, layers))
    return [layer for layer in layers if layer in chosen]


def impossible(text: str) -> str | None:
    """The first name of a list for `select_layers` that no model has, or None.

    That is one outside the grammar, a range that runs backwards, or a second middle block.
    """
    for token in _tokens(text):
        match = SPEC.fullmatch(token)
        if not match:
            if token not in ("auto", "all"):
                return token
            continue
        letter, first, last, low, high = match.groups()
        backwards = any(end is not None and int(start) > int(end) for start, end in ((first, last), (low, high)))
        if backwards or letter == "m" and int(last or first or 0) > 0:
            return token
    return None


def _tokens(text: str) -> list[str]:
    return list(filter(None, (part.strip().lower() for part in text.split(","))))


def _token_layers(token: str, layers: list[LayerId]) -> list[LayerId]:
    match = SPEC.fullmatch(token)
    if not match:
        raise ValueError(f"Unknown layer name '{token}' in 'layers'. Use a comma list of {valid_range(layers)}; "
                         "'.2' or '.2-9' after a block picks layers inside it.")
    letter, first, last, low, high = match.groups()
    blocks = _cut(layers_by_block(layers, PARTS[letter]), first, last, token, layers)
    if low is None:
        return [layer for block in blocks for layer in block]
    return [layer for block in blocks for layer in _cut(block, low, high, token, layers)]


def _cut(items: list, first: str | None, last: str | None, token: str, layers: list[LayerId]) -> list:
    if first is None:
        start, end = 0, len(items) - 1
    else:
        start, end = int(first), int(first if last is None else last)
    if not items or not start <= end < len(items):
        inside = f" (layers inside that block: .0-.{len(items) - 1})" if items and isinstance(items[0], tuple) else ""
        raise ValueError(f"Layer '{token}' in 'layers' is outside this model{inside}. Valid: {valid_range(layers)}.")
    return items[start:end + 1]
