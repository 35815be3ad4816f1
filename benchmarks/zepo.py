"""What ZePo's control costs: plain sampling, ours with and without cached features, features recomputed every step.

Run by `python3 atelier.py bench zepo`. It needs no weights: they are random, and costs do not depend on them.
"""

import argparse
import importlib
import sys

import torch

from . import _report

ROWS, STEP_FLOPS, STEP_TIME = 12, 1.05, 1.10  # what the project set out to reach at 4 steps with guidance


def arguments(words: list[str]) -> argparse.Namespace:
    def ratio(text):
        if not 0 <= float(text) <= 0.75:
            raise argparse.ArgumentTypeError(f"{text} is not between 0 and 0.75")
        return float(text)

    parser = _report.parser("zepo", __doc__)
    add = parser.add_argument
    add("--sizes", type=_report.side, nargs="+", default=[256, 512], metavar="PX", help="side of the square picture (default: 256 512)")
    add("--steps", type=_report.number, nargs="+", default=[4], metavar="N", help="sampling steps (default: 4)")
    add("--merge", type=ratio, nargs="+", default=[0.5], metavar="R", help="token merge ratio (default: 0.5)")
    add("--rounds", type=_report.rounds, default=3, metavar="N", help="timed runs of every variant; 0 counts only (default: 3)")
    add("--device", choices=["auto", "cpu"], default="auto", help="auto: what ComfyUI takes (default)")
    return parser.parse_args(words)


def table(run: dict) -> str:
    """One comparison as text: a line per variant, a line per part of it, ratios to plain sampling."""
    lines = [f"\n{run['size']} x {run['size']} px, {run['steps']} steps, guidance 2, token merge {run['merge']:g}, "
             f"{run['rounds']} rounds", f"{'':24}{'rows':>6}{'calls':>7}{'TFLOP':>10}{'x plain':>9}{'seconds':>10}{'x plain':>9}{'CPU s':>10}"
             f"{'x plain':>9}{'peak MB':>9}"]
    plain = run["variants"]["plain"]
    for name, variant in run["variants"].items():
        peak = None if variant["peak_bytes"] is None else variant["peak_bytes"] / 1e6
        lines.append(f"{name:24}{variant['rows']:6}{variant['calls']:7}{variant['flops'] / 1e12:10.4f}"
                     f"{variant['flops'] / plain['flops']:9.3f}{known(variant['seconds'], 10, 3)}"
                     f"{known(run['time'][name]['seconds'], 9, 2)}{known(variant['cpu_seconds'], 10, 3)}"
                     f"{known(run['time'][name]['cpu_seconds'], 9, 2)}{known(peak, 9, 0)}")
        step = 0
        for part in variant["parts"]:
            step += part["part"] == "step"
            title = f"  {part['part']} {step}" if part["part"] == "step" else f"  {part['part']}"
            lines.append(f"{title:24}{part['rows']:6}{part['calls']:7}{part['flops'] / 1e12:10.4f}{'':9}{known(part['seconds'], 10, 3)}"
                         f"{'':9}{known(part['cpu_seconds'], 10, 3)}")
    lines.append(f"cached features: {run['bank_bytes'] / 1e6:.1f} MB after merging, {run['bank_bytes_unmerged'] / 1e6:.1f} MB before")
    lines.append(f"from the result with cached features differs by, relative to its maximum: plain sampling {run['plain_differs_by']:.1e}, "
                 f"recomputed features {run['recomputed_differs_by']:.1e}")
    return "\n".join(lines)


def known(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def targets(run: dict, on_cpu: bool) -> list[dict]:
    """What the project set out to reach, and whether this comparison does: rows for 4 steps, a step's cost for merge 0.5.

    On a CPU a step's time is that of the process: waiting for other programs is not part of it.
    """
    rows = {name: variant["rows"] for name, variant in run["variants"].items()}
    found = []
    if run["steps"] == 4:
        found += [(f"cold: at most {ROWS} UNet rows", rows["cold"], rows["cold"] <= ROWS),
                  ("recomputed: 24 UNet rows", rows["recomputed"], rows["recomputed"] == 24)]
    found.append(("warm: no extraction, rows of plain sampling", rows["warm"], rows["warm"] == rows["plain"]))
    if run["merge"] == 0.5:
        found.append((f"patched step: at most {STEP_FLOPS} x the FLOPs of a plain one", run["step_flops"],
                      run["step_flops"] <= STEP_FLOPS))
        seconds = run["step_time"]["cpu_seconds" if on_cpu else "seconds"]
        if seconds is not None:
            found.append((f"patched step: at most {STEP_TIME} x the {'CPU ' if on_cpu else ''}time of a plain one", seconds,
                          seconds <= STEP_TIME))
    return [{"target": text, "measured": value, "reached": reached} for text, value, reached in found]


def main(words: list[str]) -> int:
    options = arguments(words)
    torch.set_num_threads(options.threads)
    cli = importlib.import_module("comfy.cli_args")  # ComfyUI chooses its device when the next line imports it
    cli.args.cpu = cli.args.cpu or options.device == "cpu"
    work = importlib.import_module("._zepo", __package__)
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    report = _report.begin("zepo", words, f"SD1.5 UNet, {'a tenth of its channels' if options.tiny else 'full size'}, random weights", device,
                           options.threads) | {"runs": []}
    with torch.inference_mode():
        try:
            work.check_counter()
        except RuntimeError as error:
            print(f"bench zepo: {error}", file=sys.stderr)
            return 2
        _report.say("Making a UNet with random weights")
        model = work.random_model(options.tiny)
        report["parameters"] = sum(weight.numel() for weight in model.model.diffusion_model.parameters())
        report["dtype"] = str(model.model.get_dtype()).removeprefix("torch.")
        _report.say("")
        print(f"{report['model']}: {report['parameters'] / 1e6:.1f} million parameters, {report['dtype']}; {report['hardware']}, "
              f"{options.threads} threads, torch {torch.__version__}, ComfyUI {report['comfyui']}", flush=True)
        for size in options.sizes:
            for merge in options.merge:
                for steps in options.steps:
                    run = work.compare(model, size, steps, merge, options.rounds, _report.say)
                    _report.say("")
                    print(table(run))
                    run["targets"] = targets(run, device.type == "cpu")
                    _report.print_targets(run["targets"])
                    report["runs"].append(run)
                    _report.write(report, options.json)  # after every run: long ones may be interrupted
    print(f"\nAll numbers: {options.json.resolve()}")
    return 0


if __name__ == "__main__":
    _report.run(main)
