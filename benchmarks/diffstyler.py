"""What DiffStyler costs: UNet rows of whole runs, one packed call against separately patched ones, growth with the number of styles.

Run by `python3 atelier.py bench diffstyler`, on the CPU. It needs no weights: they are random, and costs do not depend on them.
"""

import argparse
import importlib

import torch

from . import _report

ROWS = 200              # what the project set out to reach for 50 steps of one style with inversion
PUBLISHED_ROWS = 2298   # by reading the published code: 1998 rows of inversion, 6 per step


def arguments(words: list[str]) -> argparse.Namespace:
    parser = _report.parser("diffstyler", __doc__)
    add = parser.add_argument
    add("--size", type=_report.side, default=256, metavar="PX", help="side of the square picture in timed steps (default: 256)")
    add("--styles", type=_report.number, nargs="+", default=[1, 2], metavar="R", help="numbers of styles in timed steps (default: 1 2)")
    add("--rounds", type=_report.number, default=3, metavar="N", help="timed rounds, the two ways taking turns (default: 3)")
    return parser.parse_args(words)


def rows_table(runs: list[dict]) -> str:
    lines = [f"{'whole runs':44}{'inversion':>10}{'sampling':>10}{'rows':>8}{'calls':>8}"]
    for run in runs:
        name = f"{run['styles']} styles, {run['steps']} steps, {run['mode']}, cfg {run['cfg']:g}, {run['preset']}"
        lines.append(f"{name:44}{run['inversion']:10}{run['sampling']:10}{run['rows']:8}{run['calls']:8}")
    return "\n".join(lines)


def steps_table(steps: list[dict]) -> str:
    lines = [f"\n{'one step':30}{'rows':>6}{'calls':>12}{'packed s':>10}{'separate s':>12}{'ratio':>8}{'CPU ratio':>11}{'differ by':>11}"]
    for step in steps:
        clock, cpu = step["seconds"], step["cpu_seconds"]
        name = f"{step['styles']} styles, t = {step['timestep']}"
        lines.append(f"{name:30}{step['rows']:6}{'1 against ' + str(step['calls_separate']):>12}{clock['packed']:10.3f}{clock['separate']:12.3f}"
                     f"{clock['ratio']:8.2f}{cpu['ratio']:11.2f}{step['differ_by']:11.1e}")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    options = arguments(words)
    torch.set_num_threads(options.threads)
    importlib.import_module("comfy.cli_args").args.cpu = True  # ComfyUI chooses its device when the next line imports it
    work = importlib.import_module("._diffstyler", __package__)
    import comfy.model_management

    report = _report.begin("diffstyler", words, f"SD1.5 UNet, {'a tenth of its channels' if options.tiny else 'full size'}, random weights",
                           comfy.model_management.get_torch_device(), options.threads)
    with torch.inference_mode():
        _report.say("Counting rows on a small UNet")
        study = work.Study(tiny=True, size=64)  # rows do not depend on the size
        report["runs"] = [study.whole_run(styles, 50, "ddim") for styles in (1, 2, 3)]
        report["runs"] += [study.whole_run(1, 50, "forward"), study.whole_run(1, 50, "reference", preset="reference"),
                           study.whole_run(1, 4, "shared noise", cfg=1.0), study.whole_run(2, 4, "shared noise", cfg=1.0)]
        _report.say("")
        print(f"{report['model']} in timed steps; {report['hardware']}, {options.threads} threads, torch {torch.__version__}, ComfyUI "
              f"{report['comfyui']}\n")
        print(rows_table(report["runs"]), flush=True)
        rows = report["runs"][0]["rows"]
        report["targets"] = [{"target": f"50 steps of one style with inversion: at most {ROWS} UNet rows (published code: {PUBLISHED_ROWS})",
                              "measured": rows, "reached": rows <= ROWS}]
        _report.say("Making a UNet with random weights")
        study = work.Study(options.tiny, options.size)
        report["steps"] = [study.step(styles, timestep, options.rounds, _report.say) for styles in options.styles for timestep in (901, 301)]
        _report.say("")
        print(steps_table(report["steps"]))
        growth = [step for step in report["steps"] if step["timestep"] == 901]
        for step in growth[1:]:
            print(f"{step['styles']} styles cost {step['seconds']['packed'] / growth[0]['seconds']['packed']:.2f} x the step of "
                  f"{growth[0]['styles']}; rows {step['rows'] / growth[0]['rows']:.2f} x")
    return _report.end(report, options.json)


if __name__ == "__main__":
    _report.run(main)
