"""DiffStyler's injection plan: which rows one packed UNet call has, whose LoRA each runs through, what it takes from a source row.

Pure bookkeeping for equations (4), (5) and (7). A branch is one style; branch 0 is the base model. "f" stands for ResBlock
features, "sa" and "ca" for the maps of self- and cross-attention, injected as their queries and keys.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .blocks import LayerId, impossible as impossible_layers, select_layers

KINDS = ("f", "sa", "ca")
SOURCE, NEGATIVE, BASE = "source", "negative", "base"
PRESETS = ("paper", "reference")
BLOCKS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Sites:
    """Where to inject: features after the convolution of these decoder blocks, maps in these attention layers."""

    features: frozenset[int]
    self_attention: frozenset[LayerId]
    cross_attention: frozenset[LayerId]

    @property
    def kinds(self) -> frozenset[str]:
        present = {"f": self.features, "sa": self.self_attention, "ca": self.cross_attention}
        return frozenset(kind for kind, layers in present.items() if layers)


@dataclass(frozen=True)
class Row:
    """One row of a packed call: its prompt, the branch whose LoRA it runs through, what it takes from which source row.

    ratio is the share of the source's queries and keys in self-attention; `source` is the branch of that source row.
    """

    prompt: str
    branch: int
    kinds: frozenset[str] = frozenset()
    source: int = 0
    ratio: float = 1.0


@dataclass(frozen=True)
class Injection:
    """rows <- ratio * row `source` + (1 - ratio) * rows; the ratio counts in self-attention only."""

    source: int
    rows: slice
    kinds: frozenset[str]
    ratio: float


@dataclass(frozen=True)
class Plan:
    """One packed call: its rows, the rows of every branch with a LoRA, and the injections. Sources are never written to."""

    rows: tuple[Row, ...]
    routes: dict[int, slice]
    injections: tuple[Injection, ...]


def parse_sites(text: str, preset: str, layers: list[LayerId], blocks: int, upsampled: int) -> Sites:
    """The widget `layers`: ``auto`` or ``f=4-11;sa=3-11;ca=3-11``; a kind that is left out is not injected.

    Numbers are decoder blocks, the paper's layers 0 to `blocks` - 1; sa and ca also take names such as u1-8, d3, m0 (see
    `blocks.select_layers`). layers: every transformer layer in forward order. upsampled: first decoder block above the lowest
    resolution. auto: the paper's f 4-11, sa and ca 3-11 on SD1 and SD2 (features in all blocks above the lowest resolution but
    the first, attention in the whole decoder), or the published code's f 4, sa 4-11, no ca. Raises ValueError naming the part.
    """
    first = min(upsampled + 1, blocks - 1)
    words = text.strip().lower()
    if words == "auto":
        last = blocks - 1
        words = f"f={first}-{last};sa=0-{last};ca=0-{last}" if preset == "paper" else f"f={first};sa={first}-{last}"
    found = dict.fromkeys(KINDS, frozenset())
    for part, kind, value in _parts(words):
        if kind not in KINDS or not value:
            raise ValueError(f"'{part}' in 'layers' is not understood. Write auto, or for example f={first}-{blocks - 1};sa=3-{blocks - 1};"
                             f"ca=3-{blocks - 1}: f features, sa self-attention, ca cross-attention, decoder blocks 0-{blocks - 1}.")
        chosen = set()
        for token in _tokens(value):
            chosen |= _chosen(token, kind, layers, blocks)
        found[kind] = frozenset(chosen)
    return Sites(found["f"], found["sa"], found["ca"])


def impossible(text: str) -> str | None:
    """The first part of a text for `parse_sites` that no model has (see `blocks.impossible`), or None."""
    words = text.strip().lower()
    for part, kind, value in [] if words == "auto" else _parts(words):
        if kind not in KINDS or not value:
            return part
        for token in _tokens(value):
            match = BLOCKS.fullmatch(token)
            backwards = match and match[2] and int(match[1]) > int(match[2])
            if backwards or not match and (kind == "f" or impossible_layers(token)):
                return f"{kind}={token}"
    return None


def _parts(words: str) -> list[tuple[str, str, str]]:
    """(the part, its kind, its value) for each part of ``kind=value;kind=value``."""
    parts = filter(None, (part.strip() for part in words.split(";")))
    return [(part, *(word.strip() for word in part.partition("=")[::2])) for part in parts]


def _tokens(value: str) -> list[str]:
    return list(filter(None, (token.strip() for token in value.split(","))))


def _chosen(token: str, kind: str, layers: list[LayerId], blocks: int) -> set:
    match = BLOCKS.fullmatch(token)
    if not match and kind != "f":
        return set(select_layers(token, layers))
    start, end = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not start <= end < blocks:
        raise ValueError(f"'{token}' of '{kind}' in 'layers' is no range of decoder blocks. This model has blocks 0-{blocks - 1}.")
    wanted = range(start, end + 1)
    return set(wanted) if kind == "f" else {layer for layer in layers if layer[0] == "output" and layer[1] in wanted}


def step_rows(timestep: int, branches: int, sites: Sites, *, preset: str, feature_until: int, attention_until: int, guided: bool,
              base: bool, keep_source: bool) -> tuple[Row, ...]:
    """The rows of one step: ``source | negative 1, prompt 1 | negative 2, ...``, the base model's own rows first if `base`.

    A window is open while timestep >= its threshold, so the number of steps does not matter. Preset "reference" gives every
    branch a source row through its own LoRA, mixes self-attention by min(1, 2t/1000) and injects into the base model's rows in
    every step. A source leaves once nobody takes from it, unless `keep_source`. Without guidance there are no negative rows.
    """
    opened = frozenset(kind for kind in sites.kinds if timestep >= (feature_until if kind == "f" else attention_until))
    reference = preset == "reference"
    ratio = min(1.0, 2 * timestep / 1000) if reference else 1.0
    rows = []
    if keep_source or (opened and not reference):
        rows.append(Row(SOURCE, 0))
    for branch in range(0 if base else 1, branches + 1):
        kinds = (sites.kinds if reference else frozenset()) if branch == 0 else opened
        own = branch if reference else 0
        if reference and kinds and not (own == 0 and keep_source):
            rows.append(Row(SOURCE, branch))
        prompts = [NEGATIVE] * guided + [BASE if branch == 0 else str(branch)]
        rows += [Row(prompt, branch, kinds, own, ratio) for prompt in prompts]
    return tuple(rows)


def split(rows: Sequence[Row], limit: int) -> list[tuple[Row, ...]]:
    """Rows in calls of at most `limit`, each with the source rows it needs (so of two rows at least); 0 means one call.

    Every row but a needed-again source occurs once, in order.
    """
    sources = {row.branch: row for row in rows if row.prompt == SOURCE}
    calls, call, pending = [], [], []
    for row in rows:
        if row.prompt == SOURCE:
            pending.append(row)
            continue
        needed = list(pending)
        if row.kinds and sources[row.source] not in call + needed:
            needed.append(sources[row.source])
        if call and limit and len(call) + len(needed) + 1 > limit:
            calls.append(tuple(call))
            call = []
            if row.kinds and sources[row.source] not in needed:
                needed.append(sources[row.source])
        call += [*needed, row]
        pending = []
    return [*calls, tuple([*call, *pending])]


def plan(rows: Sequence[Row], routed: frozenset[int]) -> Plan:
    """Routes and injections of one call; `routed` are the branches that have a LoRA.

    Rows of one branch must be neighbours. Raises ValueError otherwise, or for a row without its source.
    """
    sources = {row.branch: i for i, row in enumerate(rows) if row.prompt == SOURCE}
    routes, injections = {}, []
    for branch in sorted(routed & {row.branch for row in rows}):
        routes[branch] = _neighbours([i for i, row in enumerate(rows) if row.branch == branch])
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        if row.kinds:
            if row.source not in sources:
                raise ValueError(f"row {i} takes from the source of branch {row.source}, which this call does not have")
            groups.setdefault((row.branch, sources[row.source], row.kinds, row.ratio), []).append(i)
    for (_, source, kinds, ratio), members in groups.items():
        injections.append(Injection(source, _neighbours(members), kinds, ratio))
    return Plan(tuple(rows), routes, tuple(injections))


def _neighbours(numbers: list[int]) -> slice:
    if numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise ValueError(f"rows {numbers} are not neighbours")
    return slice(numbers[0], numbers[-1] + 1)
