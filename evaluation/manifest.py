"""The list of what to measure: a JSON file with, for each method, its generated pictures and what they were made from; or the
folder that `atelier.py batch` wrote, whose report says the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .errors import EvaluationError

PICTURES = ("generated", "identity", "other_photo", "content", "style")
TEXTS = ("prompt", "style_prompt", "sequence")
NUMBERS = ("seconds", "fine_tuning_seconds", "peak_memory")


def read(paths: list[Path]) -> dict[str, list[dict]]:
    """Method name -> items, of manifests and of output folders of `batch`; pictures' paths become whole ones. Raises EvaluationError.

    Whether the pictures can be read shows when they are measured: one bad picture must not lose the others.
    """
    methods = {}
    for path in paths:
        found = of_batch(path) if path.is_dir() else of_manifest(path)
        twice = next(iter(found.keys() & methods.keys()), None)
        if twice is not None:
            raise EvaluationError(f"the method {twice!r} of {path} is in an earlier file or folder too: give each its own name")
        methods |= found
    return methods


def lines_of(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"the {what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def of_batch(folder: Path) -> dict[str, list[dict]]:
    """The results of a batch, as one method with the folder's name. Who is on the content has to be on the result too."""
    report = folder / "report.jsonl"
    items, where, prompt = {}, Path(), None
    for number, line in enumerate(lines_of(report, "report of a batch").split("\n")[:-1], 1):  # a last line that is cut off is none
        try:
            entry = json.loads(line)
            if "call" in entry:
                where, prompt = Path(entry.get("folder", "")), dict(entry["call"]["settings"]).get("prompt")
            elif entry.get("output") and not entry.get("error"):
                inputs = {side: where / path for side, path in entry["inputs"].items()}
                item = {"generated": folder / entry["output"], "content": inputs.get("content"), "style": inputs.get("style"),
                        "identity": inputs.get("face", inputs.get("content")), "prompt": entry["settings"].get("prompt", prompt),
                        **{key: entry.get(key) for key in NUMBERS}}
                items[entry["output"]] = {key: value for key, value in item.items() if value is not None}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"the report of a batch {report}, line {number}, is no line of one: {error}") from None
    if not items:
        raise EvaluationError(f"the report of a batch {report} tells of no result: there is nothing to measure")
    return {folder.resolve().name.encode("utf-8", "replace").decode(): list(items.values())}


def of_manifest(path: Path) -> dict[str, list[dict]]:
    text = lines_of(path, "manifest")
    try:
        methods = json.loads(text, object_pairs_hook=without_repeats, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"the manifest {path} is no JSON: {error}") from None
    if not isinstance(methods, dict) or not methods:
        raise EvaluationError(f"the manifest {path} must be an object of method name -> list of items, with at least one method")
    for name, items in methods.items():
        if not isinstance(items, list) or not items:
            raise EvaluationError(f"the manifest {path}: method {name!r} must be a list with at least one item")
        for number, item in enumerate(items):
            fault = fault_of(item)
            if fault:
                raise EvaluationError(f"the manifest {path}: method {name!r}, item {number}: {fault}")
    return {name: [{key: path.parent / value if key in PICTURES else value for key, value in item.items()} for item in items]
            for name, items in methods.items()}


def fault_of(item) -> str | None:
    if not isinstance(item, dict):
        return "an item must be an object"
    for key, value in item.items():
        if key not in (*PICTURES, *TEXTS, *NUMBERS):
            return f"unknown key {key!r}: there are {', '.join((*PICTURES, *TEXTS, *NUMBERS))}"
        if key in NUMBERS:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                return f"{key} must be a number that is not negative, not {json.dumps(value)}"
        elif not isinstance(value, str) or not value.strip():
            return f"{key} must be a text that is not empty, not {json.dumps(value)}"
    return None if "generated" in item else "the key 'generated' is missing: the path of the picture to measure"


def without_repeats(pairs: list) -> dict:
    # json would keep the last of two equal keys and drop the first without a word.
    keys = [key for key, _ in pairs]
    repeated = [key for key in keys if keys.count(key) > 1]
    if repeated:
        raise ValueError(f"the key {repeated[0]!r} appears twice in one object")
    return dict(pairs)


def refuse_constant(name: str):
    raise ValueError(f"{name} is no JSON number")
