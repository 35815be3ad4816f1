"""What FastFace costs: UNet rows of guided runs, and what the attention transforms add to a step in FLOPs, memory and time.

Run by `python3 atelier.py bench fastface`. It needs no weights: they are random, and costs do not depend on them.
"""

import argparse
import importlib

import torch

from . import _report

# What the project set out to reach.
ROWS = {"person, CFG 1": 4, "Scale-Power, CFG 1": 4, "Scheduled-Softmax, CFG 1": 4, "CFG 2": 8, "Decoupled CFG": 8,
        "Decoupled CFG, Scale-Power": 8, "Decoupled CFG, rescale all": 10, "Decoupled CFG, all rows": 12}
FLOPS, TIME = 0.03, 1.05


def arguments(words: list[str]) -> argparse.Namespace:
    parser = _report.parser("fastface", __doc__)
    add = parser.add_argument
    add("--sizes", type=_report.side, nargs="+", default=[512, 1024], metavar="PX", help="sides of the square pictures counted (default: 512 1024)")
    add("--time-size", type=_report.side, default=512, metavar="PX", help="side of the square picture of timed steps (default: 512)")
    add("--rounds", type=_report.rounds, default=3, metavar="N", help="timed rounds, the ways taking turns; 0 counts only (default: 3)")
    return parser.parse_args(words)


def rows_table(rows: dict) -> str:
    return "\n".join([f"{'4 steps':32}{'rows':>6}  per call", *(f"{name:32}{sum(calls):6}  {calls}" for name, calls in rows.items())])


def count_table(count: dict) -> str:
    lines = [f"\n{f'one step, one row, {count_size(count)}':32}{'TFLOP':>9}{'elements M':>12}{'operations':>12}{'peak MB':>10}"
             f"{'adapter MB':>12}{'added':>9}"]
    for name, found in count["variants"].items():
        added = f"{count['flops_added'][name]:9.4%}" if name in count["flops_added"] else ""
        lines.append(f"{name:32}{found['products'] / 1e12:9.4f}{found['elements'] / 1e6:12.1f}{found['operations']:12}{found['peak_bytes'] / 1e6:10.1f}"
                     f"{found['branch_bytes'] / 1e6:12.2f}{added}")
    maps = ", ".join(f"{name} {number:.2f}" for name, number in count["maps_added"].items())
    return "\n".join([*lines, f"one map of the largest layer: {found['map_bytes'] / 1e6:.2f} MB; maps in use beyond the adapter alone: {maps}"])


def count_size(count: dict) -> str:
    return f"{count['size']} px"


def time_table(time: dict) -> str:
    lines = [f"\n{f'one step, {count_size(time)}, ' + str(time['rounds']) + ' rounds':32}{'steps in turn':>16}{'CPU':>8}{'layer by layer':>17}{'CPU':>8}"]
    for name, step in time["step_ratio"].items():
        layer = time["layer_ratio"][name]
        lines.append(f"{name:32}{step['seconds']:16.3f}{step['cpu_seconds']:8.3f}{layer['seconds']:17.4f}{layer['cpu_seconds']:8.4f}")
    return "\n".join(lines)


def targets(report: dict, on_cpu: bool) -> list[dict]:
    """What the project set out to reach, and whether it is; time on the real size only. On a CPU it is that of the process, not of
    other programs."""
    rows = {name: sum(calls) for name, calls in report["rows"].items()}
    found = [(f"{name}: {wanted} UNet rows in 4 steps", rows[name], rows[name] == wanted) for name, wanted in ROWS.items()]
    for count in report["counts"]:
        found += [(f"{name}: at most {FLOPS:.0%} of a step's FLOPs at {count['size']} px", added, added <= FLOPS)
                  for name, added in count["flops_added"].items()]
        found += [(f"{name}: no more bytes at a step's peak at {count['size']} px", added, added <= 0) for name, added in count["peak_added"].items()]
    first, last = report["counts"][0], report["counts"][-1]
    found += [(f"{name}: as many maps in use at {last['size']} px as at {first['size']} px, or fewer", last["maps_added"][name] / max(number, 1e-9),
               last["maps_added"][name] <= number) for name, number in first["maps_added"].items() if first is not last]
    clock, kind = ("cpu_seconds", "CPU time") if on_cpu else ("seconds", "time")
    if report["time"] and not report["tiny"]:
        for way, title in (("layer_ratio", "layer by layer"), ("step_ratio", "steps in turn")):
            found += [(f"{name}: at most {TIME} x the {kind} of a step, {title}", ratio[clock], ratio[clock] <= TIME)
                      for name, ratio in report["time"][way].items()]
    return [{"target": text, "measured": value, "reached": reached} for text, value, reached in found]


def main(words: list[str]) -> int:
    options = arguments(words)
    torch.set_num_threads(options.threads)
    work = importlib.import_module("._fastface", __package__)  # ComfyUI chooses its device when this imports it
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    report = _report.begin("fastface", words, f"SDXL UNet, {'a tenth of its channels' if options.tiny else 'full size'}, random weights", device,
                           options.threads) | {"tiny": options.tiny}
    with torch.inference_mode():
        _report.say("Counting rows")
        report["rows"] = work.Study(tiny=True).rows()  # they do not depend on the size
        study = work.Study(options.tiny, meta=True)
        report["parameters"] = sum(weight.numel() for weight in study.model.model.diffusion_model.parameters())
        _report.say("")
        print(f"{report['model']}: {report['parameters'] / 1e6:.1f} million parameters; {report['hardware']}, {options.threads} threads, "
              f"torch {torch.__version__}, ComfyUI {report['comfyui']}\n\n{rows_table(report['rows'])}", flush=True)
        report["counts"] = []
        for size in options.sizes:
            report["counts"].append(study.count(size))
            print(count_table(report["counts"][-1]), flush=True)
        report["time"] = work.Study(options.tiny).time(options.time_size, options.rounds, _report.say) if options.rounds else None
        _report.say("")
        if report["time"]:
            print(time_table(report["time"]))
    report["targets"] = targets(report, device.type == "cpu")
    print()
    return _report.end(report, options.json)


if __name__ == "__main__":
    _report.run(main)
