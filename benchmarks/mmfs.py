"""What MMFS costs: its network against one with grouped convolutions, a step of few-shot training, memory, precision.

Run by `python3 atelier.py bench mmfs`. It needs no weights: they are random, and costs do not depend on them.
"published" computes as the authors' code does on a CPU: grouped convolutions, and the low pass channel by channel;
"grouped" has the low pass in one call.
"""

import argparse

import comfy.model_management
import torch

from . import _mmfs as work, _report

FASTER, EQUAL = 1.5, 1e-4  # what the project set out to reach
BATCH = 8  # of few-shot training


def arguments(words: list[str]) -> argparse.Namespace:
    parser = _report.parser("mmfs", __doc__)
    add = parser.add_argument
    add(
        "--sizes",
        type=_report.side,
        nargs="+",
        default=[256, 512],
        metavar="PX",
        help="side of the square picture (default: 256 512)",
    )
    add("--rounds", type=_report.number, default=3, metavar="N", help="timed runs of each way, in turn (default: 3)")
    add("--styles", type=_report.number, default=4, metavar="N", help="styles of the sweep over one photo (default: 4)")
    return parser.parse_args(words)


def line(name: str, run: dict) -> str:
    ours, others = run["ways"]["ours"], [run["ways"][way] for way in ("grouped", "published")]
    return (
        f"{name:44}{ours['cpu_seconds']:10.3f}"
        + "".join(f"{other['x_ours']:11.2f}" for other in others)
        + f"{max(other['differs_by'] for other in others):12.1e}"
    )


def main(words: list[str]) -> int:
    options = arguments(words)
    torch.set_num_threads(options.threads)
    device = comfy.model_management.get_torch_device()
    network = work.random_network(options.tiny)
    report = _report.begin(
        "mmfs",
        words,
        f"MMFS, {'an eighth of its channels' if options.tiny else 'full width'}, random weights",
        device,
        options.threads,
    )
    report["parameters"] = sum(weight.numel() for weight in network.parameters())
    print(
        f"{report['model']}: {report['parameters'] / 1e6:.2f} million parameters; {report['hardware']}, "
        f"{options.threads} threads, torch {torch.__version__}\n"
    )
    print(f"{'CPU seconds':44}{'ours':>10}{'grouped x':>11}{'published x':>12}{'differ by':>11}")
    report["runs"] = []
    for size in options.sizes:
        for batch, styles, decoder in ((1, 1, False), (1, 1, True), (4, 4, False), (4, 1, True)):
            if batch > 1 and size > 256:
                continue  # as many pixels as one picture of twice the side
            name = f"{'decoder' if decoder else 'forward'}, {size} px, {batch} pictures, {styles} styles"
            report["runs"].append(
                {"name": name, "ways": work.forward(network, size, batch, styles, decoder, options.rounds, _report.say)}
            )
            _report.say("")
            print(line(name, report["runs"][-1]), flush=True)
            _report.write(report, options.json)
    size = options.sizes[0]
    name = f"few-shot step of the decoder, {size} px, 2 photos"
    report["runs"].append({"name": name, "ways": work.step(network, size, 2, options.rounds, _report.say)})
    _report.say("")
    print(line(name, report["runs"][-1]), flush=True)

    report["sweep"] = work.sweep(network, size, options.styles)
    once, each = report["sweep"]["once"], report["sweep"]["each time"]
    print(
        f"\n{options.styles} styles of one photo, {size} px: {once['encode']} encoder and "
        f"{once['decode']} decoder calls, {each['cpu_seconds'] / once['cpu_seconds']:.2f} "
        f"x as long with {each['encode']} encoder calls"
    )

    report["memory"] = {
        str(size): {str(micro): work.memory(options.tiny, size, micro) for micro in (1, 2, 4, 8)}
        for size in options.sizes
    }
    print(f"\n{'MB kept for the backward pass, decoder':44}{'ours':>10}{'grouped':>11}{'published':>12}")
    for size, rows in report["memory"].items():
        for micro, ways in rows.items():
            print(
                f"{f'{size} px, batch {BATCH}, micro-batch {micro}':44}"
                f"{ways['ours'] / 1e6:10.0f}{ways['grouped'] / 1e6:11.0f}{ways['published'] / 1e6:12.0f}"
            )

    report["decibels"] = work.precision(network, options.sizes[0])
    print(
        f"\nAgainst float64, {options.sizes[0]} px: "
        + ", ".join(f"{name} {value:.0f} dB" for name, value in report["decibels"].items())
    )
    if device.type == "cuda":
        report["frames_per_second"] = work.frames_per_second(network, device, options.sizes[-1], BATCH, options.rounds)
        print(
            f"Frames per second, {options.sizes[-1]} px, batches of {BATCH}: "
            + ", ".join(f"{name} {value:.1f}" for name, value in report["frames_per_second"].items())
        )
    else:
        print("Frames per second on a GPU, compiled and not: not measured, there is none.")
    report["targets"] = [
        {
            "target": f"{run['name']}: at least {FASTER} x faster than the published way",
            "measured": run["ways"]["published"]["x_ours"],
            "reached": run["ways"]["published"]["x_ours"] >= FASTER,
        }
        for run in report["runs"]
    ]
    worst = max(way["differs_by"] for run in report["runs"] for way in run["ways"].values())
    report["targets"].append(
        {"target": f"results differ by at most {EQUAL:g}", "measured": worst, "reached": worst <= EQUAL}
    )
    print()
    return _report.end(report, options.json)


if __name__ == "__main__":
    _report.run(main)
