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
from .manifest import NUMBERS, read  # noqa: E402
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
    from .faces import FaceFails, FaceStyle, Identity
    from .gram import GramStyle
    from .lpips import Lpips
    from .weights import Tools, model_folders
    device = "cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu"
    tools = Tools(model_folders(options.models), device, options.face_pack)
    items = [item for method in methods.values() for item in method]
    loaded, skipped, broken = [], {}, False
    for metric in (Identity, FaceFails, ClipScore, FaceStyle, Aesthetic, Lpips, ClipIqa, GramStyle):
        if not any(set(metric.needs) <= set(item) for item in items):
            continue
        try:
            loaded.append(metric(tools, options.lpips) if metric is Lpips else metric(tools))
        except EvaluationError as error:
            skipped[metric.name] = str(error)
            tools.used.pop(metric.name, None)
            broken = broken or not isinstance(error, MissingWeights)
            say(f"{metric.name} is skipped: {error}")
    return loaded, skipped, tools.used, broken


def measure(item: dict, metrics: list) -> dict:
    """All values of one item. A metric that fails leaves a line in "errors" and does not stop the others."""
    values, notes, errors = {key: float(item[key]) for key in NUMBERS if key in item}, [], []
    for metric in metrics:
        if not set(metric.needs) <= set(item):
            continue
        try:
            value = metric(item)
            if not math.isfinite(value):
                raise Undefined("the value is not a number")
        except Undefined as error:
            value = None
            notes.append(f"{metric.name}: {error}")
        except (EvaluationError, RuntimeError) as error:  # RuntimeError: torch's, out of memory among them
            if str(error) not in errors:  # the same unreadable picture for every metric
                errors.append(str(error))
            continue
        values[metric.name] = value
    told = {key: str(value) for key, value in item.items() if key not in NUMBERS}
    return {**told, "values": values, "notes": notes, "errors": errors}


def summary(items: list[dict]) -> dict:
    """Mean, standard deviation (of the sample) and count of each metric over the items where it has a value."""
    metrics = {}
    for name in dict.fromkeys(name for item in items for name in item["values"]):
        all_values = [item["values"][name] for item in items if name in item["values"]]
        values = [value for value in all_values if value is not None]
        metrics[name] = {"mean": statistics.fmean(values) if values else None,
                         "std": statistics.stdev(values) if len(values) > 1 else None,
                         "sum": math.fsum(values), "count": len(values), "undefined": len(all_values) - len(values)}
    return {"pictures": len(items), "metrics": metrics}


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
    done, interrupted = {name: [] for name in methods}, False
    jobs = [(name, item) for name, items in methods.items() for item in items]
    try:
        with torch.inference_mode():
            for name, item in tqdm(jobs, "Measure", unit="picture", disable=None):
                done[name].append(measure(item, metrics))
                for error in done[name][-1]["errors"]:
                    with tqdm.external_write_mode(file=sys.stderr):  # does not run into the bar
                        say(f"{name}, item {len(done[name]) - 1}: {error}")
    except KeyboardInterrupt:
        interrupted = True
    results = {name: {**summary(items), "items": items} for name, items in done.items() if items}
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
    measured = any(item["values"] for items in done.values() for item in items)
    bad = sum(bool(item["errors"]) for items in done.values() for item in items)
    if not measured:
        say("nothing was measured: the lines above say why")
    elif bad:
        say(f"{bad} of {len(jobs)} items could not be measured wholly: the lines above say why")
    return int(broken or bool(bad) or not measured)


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
