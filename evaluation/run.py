"""`python3 atelier.py evaluate FOLDER|MANIFEST ...`: measure generated pictures with the metrics of the papers.

Exit codes: 0 done (metrics without weights are skipped and named); 1 an item or a metric's weights could not be read,
or nothing was measured; 2 a bad call; 130 interrupted (what was measured is written).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from pathlib import Path

# Before any library that would look for weights on the network.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

from .errors import EvaluationError, MissingWeights, Undefined  # noqa: E402
from .manifest import NUMBERS, PICTURES, read  # noqa: E402
from .tables import TABLES, means  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise EvaluationError(f"{message} (see {self.prog} --help)")


def arguments(words: list[str]) -> argparse.Namespace:
    parser = Parser("atelier.py evaluate", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("manifests", type=Path, nargs="+", metavar="FOLDER|MANIFEST",
        help="output folder of a batch, or JSON file that lists pictures (docs/evaluation.md); several are compared")
    add("--output", type=Path, default=ROOT / ".atelier" / "evaluate.json", metavar="FILE.json",
        help="where to write all values; the page to look at them goes beside it, as .html (default: .atelier/evaluate.json)")
    add("--print", choices=sorted(TABLES), nargs="+", default=[], metavar="TABLE", dest="tables",
        help=f"tables to print, beside the papers' numbers: {', '.join(sorted(TABLES))}")
    add("--install", action="store_true", help="first of all, alone or with more: the packages that LPIPS, CLIP-IQA, FID and ArtFID need")
    add("--models", type=Path, action="append", default=[], metavar="FOLDER",
        help="a folder like ComfyUI's models/ to look for weights in, instead of ComfyUI's; may be repeated")
    add("--lpips", choices=["alex", "vgg"], default="alex", help="network of LPIPS (default: alex)")
    add("--face-pack", default="buffalo_l", metavar="NAME", help="insightface pack (default: buffalo_l)")
    add("--device", choices=["auto", "cpu"], default="auto", help="auto: CUDA if torch has it (default)")
    add("--folder", type=Path, default=Path(), help=argparse.SUPPRESS)  # atelier.py's: what relative paths start from
    options = parser.parse_args(words)

    def whole(path: Path) -> Path:
        return Path(os.path.abspath(options.folder / path.expanduser()))

    options.manifests, options.output = list(map(whole, options.manifests)), whole(options.output)
    options.models = list(map(whole, options.models))
    if options.output.suffix == ".html":
        raise EvaluationError(f"--output {options.output} is for the values, as .json; the page goes beside it by itself")
    return options


def metrics_for(methods: dict, options, say) -> tuple[list, dict, dict, bool]:
    """The metrics that some item has the keys for, loaded; why others are skipped; the files taken; whether any was broken."""
    import torch

    from .aesthetic import Aesthetic
    from .clip_iqa import ClipIqa
    from .clip_score import ClipScore
    from .csd import Csd
    from .faces import CopyPaste, FaceFails, FaceStyle, Identity
    from .flicker import Flicker
    from .gram import GramStyle
    from .image_reward import ImageReward
    from .lpips import Lpips
    from .sets import ArtFid, Diversity, Fid
    from .structure import DinoStructure
    from .style_id import StyleId
    from .weights import Tools, model_folders
    device = "cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu"
    tools = Tools(model_folders(options.models), device, options.face_pack)
    items = [item for method in methods.values() for item in method]
    loaded, skipped, broken = [], {}, False
    for metric in (Identity, StyleId, CopyPaste, FaceFails, ClipScore, ImageReward, FaceStyle, Aesthetic, Lpips, DinoStructure, ClipIqa, GramStyle, Csd,
                   Fid, ArtFid, Diversity, Flicker):
        if not any(set(metric.needs) <= set(item) for item in items):
            continue
        try:
            loaded.append(metric(tools, options.lpips) if metric in (Lpips, Diversity) else metric(tools))
        except EvaluationError as error:
            skipped[metric.name] = str(error)
            tools.used.pop(metric.name, None)
            broken = broken or not isinstance(error, MissingWeights)
            say(f"{metric.name} is skipped: {error}")
    return loaded, skipped, tools.used, broken


def measure(item: dict, metrics: list) -> dict:
    """All values of one item. A metric that fails leaves a line in "errors" and does not stop the others."""
    from .pictures import load
    values, notes, errors = {key: float(item[key]) for key in NUMBERS if key in item}, [], []
    for metric in metrics:
        if not set(metric.needs) <= set(item):
            continue
        if whole(metric):  # is told of a picture that cannot be read now, and goes without it later
            attempt(lambda item: [load(item[key]) for key in metric.needs if key in PICTURES] and 0, metric, item, notes, errors)
        else:
            values |= attempt(metric, metric, item, notes, errors)
    told = {key: str(value) for key, value in item.items() if key not in NUMBERS}
    return {**told, "values": values, "notes": notes, "errors": errors}


def attempt(work, metric, given, notes: list, errors: list) -> dict:
    """{metric: what `work(given)` gives}, None for no number; nothing where it fails. Lines are added to notes and errors."""
    try:
        value = work(given)
        if not math.isfinite(value):
            raise Undefined("the value is not a number")
    except Undefined as error:
        notes.append(f"{metric.name}: {error}")
        return {metric.name: None}
    except (EvaluationError, RuntimeError) as error:  # RuntimeError: torch's, out of memory among them
        if str(error) not in errors:  # the same unreadable picture for every metric
            errors.append(str(error))
        return {}
    return {metric.name: value}


def whole(metric) -> bool:
    """Whether the metric is one of all pictures of a method together."""
    return getattr(metric, "whole", False)


def together(items: list[dict], metrics: list) -> dict:
    """What the pictures of a method have only together: the summaries of such metrics, "notes" and "errors"."""
    found, notes, errors = {}, [], []
    for metric in filter(whole, metrics):
        mine = [item for item in items if set(metric.needs) <= set(item)]
        for name, value in attempt(metric, metric, mine, notes, errors).items() if mine else ():
            there = len(mine) * (value is not None)
            found[name] = {"mean": value, "std": None, "sum": value, "count": there, "undefined": len(mine) - there}
    return {"metrics": found, "notes": notes, "errors": errors}


def summary(items: list[dict], shared: dict) -> dict:
    """Mean, standard deviation (of the sample) and count of each metric over the items where it has a value; and what they share."""
    metrics = {}
    for name in dict.fromkeys(name for item in items for name in item["values"]):
        all_values = [item["values"][name] for item in items if name in item["values"]]
        values = [value for value in all_values if value is not None]
        metrics[name] = {"mean": statistics.fmean(values) if values else None,
                         "std": statistics.stdev(values) if len(values) > 1 else None,
                         "sum": math.fsum(values), "count": len(values), "undefined": len(all_values) - len(values)}
    return {"pictures": len(items), **shared, "metrics": metrics | shared["metrics"]}


def write(path: Path, text: str) -> None:
    """Wholly or not at all. Names of files that are no UTF-8 get question marks."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8", errors="replace")
    os.replace(part, path)


def evaluate(options, say) -> int:
    methods = read(options.manifests)
    # Now, and not after hours of measuring.
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.output.is_dir() or not os.access(options.output.parent, os.W_OK):
        raise EvaluationError(f"--output {options.output} cannot be written: give a file in a folder of yours")
    metrics, skipped, files, broken = metrics_for(methods, options, say)
    import torch
    from tqdm import tqdm

    from .page import page
    done, shared, interrupted = {name: [] for name in methods}, {}, False
    jobs = [(name, item) for name, items in methods.items() for item in items]
    try:
        with torch.inference_mode():
            for name, item in tqdm(jobs, "Measure", unit="picture", disable=None):
                done[name].append(measure(item, metrics))
                for error in done[name][-1]["errors"]:
                    with tqdm.external_write_mode(file=sys.stderr):  # does not run into the bar
                        say(f"{name}, item {len(done[name]) - 1}: {error}")
            for name, items in methods.items():
                shared[name] = together([item for item, told in zip(items, done[name]) if not told["errors"]], metrics)
                for line in shared[name]["notes"] + shared[name]["errors"]:
                    say(f"{name}: {line}")
    except KeyboardInterrupt:
        interrupted = True
    nothing = {"metrics": {}, "notes": [], "errors": []}
    results = {name: {**summary(items, shared.get(name, nothing)), "items": items} for name, items in done.items() if items}
    report = {"manifests": list(map(str, options.manifests)), "complete": not interrupted, "weights": files, "skipped": skipped,
              "methods": results}
    write(options.output, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    arrows = {metric.name: metric.better for metric in metrics}
    printed = [TABLES[name](results) for name in options.tables]
    view = options.output.with_suffix(".html")
    write(view, page(report, arrows, printed))
    print("\n\n".join([means(results, arrows), *printed, f"all values: {options.output}\nto look at and sort: {view}"]), flush=True)
    if interrupted:
        say("interrupted: what was measured is written")
        return 130
    measured = any(result["metrics"] for result in results.values())
    bad = sum(bool(item["errors"]) for items in done.values() for item in items)
    if not measured:
        say("nothing was measured: the lines above say why")
    elif bad:
        say(f"{bad} of {len(jobs)} items could not be measured wholly: the lines above say why")
    return int(broken or bool(bad) or not measured or any(result["errors"] for result in results.values()))


def main(words: list[str]) -> int:
    def say(line: str) -> None:
        print(f"atelier.py evaluate: {line}", file=sys.stderr, flush=True)

    try:
        return evaluate(arguments(words), say)
    except (EvaluationError, OSError) as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
