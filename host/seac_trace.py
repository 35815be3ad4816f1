"""What SEAC did in a sampling run: SEAC Trace has it recorded, SEAC Report tells it.

A record lives among the options of its run. SEAC's hooks note in it which calls they act in, and have it measure
each attention that they compute: beside the run's own computation, which stays as it is.
"""

from collections import defaultdict
from functools import partial

import torch
from comfy.patcher_extension import WrappersMP

from ..attention import seac as maths
from ..attention.blocks import LayerId
from ..attention.features import COND
from .kit.calls import Call
from .kit.sites import kept_layers
from .seac import SEAC, SLOT, TRACE, Reference


class Trace:
    """What connects the two nodes: the record of the last run that came to its end, None before."""

    last: "Record | None" = None


def traced(model) -> tuple:
    """(a clone of `model` whose runs are recorded, the Trace that gets the records)."""
    trace, clone = Trace(), model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, TRACE, partial(record_run, trace))
    return clone, trace


def untrace(model) -> None:
    """Takes SEAC Trace off a clone."""
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, TRACE)


def record_run(trace: Trace, executor, noise, *args, **kwargs):
    """OUTER_SAMPLE: puts a record among the options of this run, unless another SEAC Trace has."""
    options, trace.last = executor.class_obj.model_options["transformer_options"], None
    if TRACE in options:
        record, out = options[TRACE], executor(noise, *args, **kwargs)
    else:
        record = options[TRACE] = Record(executor.class_obj.model_patcher, len(noise))
        try:
            out = executor(noise, *args, **kwargs)
        finally:
            del options[TRACE]
    trace.last = record
    return out


class Record:
    """One run. The shares are means over the heads, and of floats over the picture too.

    seac:     the patch, a text that says why it is off, or None where the model has none
    layers:   every attention layer of the model in forward order, if it has a patch
    steps:    of the run; `seen` are those with a model call, `acted` those within the window of each reference's number
    sampled:  where in the full schedule the calls lay, from 0 to 1
    shares:   for each prompt (COND, UNCOND) and layer a list of {name of a group: share}, one for each measurement
    maps:     for each layer {reference: sums of shares, [pictures, height, width]} with the positive prompt, and in
              `counts`, [pictures], how many these are
    warnings: what the run warned of
    """

    def __init__(self, model, pictures: int):
        self.pictures, self.seac = pictures, model.get_attachment(SLOT)
        self.layers = list(kept_layers(model)) if isinstance(self.seac, SEAC) else []
        self.steps, self.seen, self.acted, self.sampled, self.warnings = 0, set(), defaultdict(set), set(), set()
        self.shares: dict[int, dict[LayerId, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
        self.maps: dict[LayerId, dict[str, torch.Tensor]] = defaultdict(dict)
        self.counts: dict[LayerId, torch.Tensor] = {}

    def note(self, call: Call, active: list[Reference]) -> None:
        """A model call, and the references within whose window it is."""
        self.steps, self.warnings = call.steps, call.run.warned
        self.seen.add(call.step)
        self.sampled.add(fraction(call.model.model_sampling, call.sigma))
        for reference in active:
            self.acted[reference.number].add(call.step)

    def measure(self, call: Call, site, groups: list[maths.Group], q: torch.Tensor, bias: torch.Tensor | None) -> None:
        """One attention: the groups that the queries [rows, queries, channels] attend to, and the logits' bias."""
        found = maths.attention_per_group(q, groups, site.heads, bias).cpu()
        whole = not call.cropped and q.shape[1] == site.grid[0] * site.grid[1]
        for text, rows in zip(call.texts, found.chunk(len(call.texts))):
            means = rows.mean((0, 1)).tolist()
            self.shares[text][site.layer].append({group.name: mean for group, mean in zip(groups, means)})
            if text == COND and whole:
                pictures = torch.tensor(range(len(rows)) if call.batch is None else call.batch)
                self.add_maps(site, pictures, groups, rows.unflatten(1, site.grid))

    def add_maps(self, site, pictures: torch.Tensor, groups: list[maths.Group], rows: torch.Tensor) -> None:
        """rows: [those pictures, height, width, groups]"""
        empty = torch.zeros(self.pictures)
        self.counts[site.layer] = self.counts.get(site.layer, empty).index_add(0, pictures, torch.ones(len(rows)))
        maps = self.maps[site.layer]
        for group, shares in zip(groups, rows.unbind(-1)):
            empty = torch.zeros(self.pictures, *site.grid)
            maps[group.name] = maps.get(group.name, empty).index_add(0, pictures, shares)


def fraction(sampling, sigma: float) -> float:
    """Where in the full schedule a sigma lies, from 0 to 1; ComfyUI has the other direction only."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if sampling.percent_to_sigma(middle) > sigma else (low, middle)
    return high
