"""One call with several values, as in --style-enhancement 0.8,1.2: a picture for each, and a contact sheet of all.

The runs go to one server, one after another, and ComfyUI's cache keeps what the values do not change: features are
extracted once.
"""
import copy
import re
from pathlib import Path

from . import sheet
from .client import title
from .errors import AtelierError
from .progress import Display
from .workflow import Editor

WIDEST = 6  # columns of a sheet of one list


class Axis:
    """One list of values: `name` as the labels say it, and the inputs that get them, [(node, input, values)]."""

    def __init__(self, places: list, workflow: dict, alike: bool):
        self.places, self.values = places, places[0][2]
        node, name, _ = places[0]
        self.name = f"{title(workflow, node)} {name}" if alike else name

    def later(self, workflow: dict) -> int:
        """How many nodes come after the first of its inputs: what a new value makes ComfyUI compute again."""
        reached, before = {node for node, _, _ in self.places}, 0
        while len(reached) > before:
            before = len(reached)
            reached |= {node for node, entry in workflow.items()
                        if any(isinstance(value, list) and value and value[0] in reached for value in entry["inputs"].values())}
        return len(reached)


def axes(editor: Editor) -> "list[Axis]":
    """One per list of values, at most two: rows and columns. The one that costs more comes first, as the first changes slowest."""
    if len(editor.lists) > 2:
        raise AtelierError(f"{len(editor.lists)} lists of values are given ({'; '.join(editor.lists)}): a sheet has rows and columns, so two at most")
    names = [places[0][1] for places in editor.lists.values()]
    found = [Axis(places, editor.workflow, names.count(places[0][1]) > 1) for places in editor.lists.values()]
    return sorted(found, key=lambda axis: -axis.later(editor.workflow))


def sweep(editor: Editor, output: Path, run, display: Display, python: "str | None") -> "list[Path]":
    """A picture per value, or per pair of values, beside `output`, which becomes their contact sheet. Returns all paths, the sheet's last.

    `run(workflow, path, prefix)` runs one and saves it at `path`. Whatever ends the row early, Ctrl-C included: what is
    finished stays, and the sheet shows it.
    """
    first, *second = axes(editor)
    inner = second[0].values if second else [None]
    cells, used = [], set()
    total = len(first.values) * len(inner)
    try:
        for outer in first.values:
            for value in inner:
                picks = [(first, outer), *((axis, value) for axis in second)]
                workflow = copy.deepcopy(editor.workflow)
                for axis, chosen in picks:
                    for node, name, values in axis.places:
                        workflow[node]["inputs"][name] = values[axis.values.index(chosen)]
                label = ", ".join(f"{axis.name} {chosen}" for axis, chosen in picks)
                name = f"{output.stem}_" + re.sub(r"[^\w.+-]+", "-", label.replace(", ", "_"))
                while name in used:
                    name += "-2"
                used.add(name)
                path = run(workflow, output.with_name(name + output.suffix), f"({len(cells) + 1} of {total}) ")
                cells.append((label, path))
    finally:
        columns = len(inner) if second else min(len(cells), WIDEST)
        problem = sheet.make(cells, columns, output, python) if cells else None
        display.clear()
        if problem:
            display.say(f"Note: no contact sheet, only the pictures: {problem}")
        if len(cells) < total:
            display.say(f"Note: {len(cells)} of {total} pictures are finished"
                        + (f" and kept: {', '.join(str(path) for _, path in cells)}" if cells else ""))
    return [path for _, path in cells] + ([] if problem else [output])
