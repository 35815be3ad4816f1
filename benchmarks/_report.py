"""What the cost benchmarks share: the command line, the machine they ran on, and their report."""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def side(text: str) -> int:
    if int(text) < 64 or int(text) % 64:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of 64")
    return int(text)


def number(text: str, least: int = 1) -> int:
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is below {least}")
    return int(text)


def rounds(text: str) -> int:
    return number(text, least=0)


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A command line with the options that all of them have."""
    made = argparse.ArgumentParser(f"atelier.py bench {name}", description=description, allow_abbrev=False)
    made.add_argument("--tiny", action="store_true", help="a small UNet with the same modules, for a quick look")
    made.add_argument("--threads", type=number, default=1, metavar="N", help="CPU threads of torch (default: 1)")
    made.add_argument("--json", type=Path, default=ROOT / ".atelier" / f"bench-{name}.json", metavar="FILE",
                      help=f"where to write all numbers (default: .atelier/bench-{name}.json)")
    return made


def say(text: str) -> None:
    """One line on a terminal that the next one replaces."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


def hardware(device) -> str:
    cores = f"{os.cpu_count()} virtual CPU cores ({platform.machine()})"
    return f"{torch.cuda.get_device_name(device)}, {cores}" if device.type == "cuda" else cores


def begin(name: str, words: list[str], model: str, device, threads: int) -> dict:
    """A report that says what was run on what. To be called after ComfyUI has been imported with its device."""
    import comfyui_version

    return {"command": " ".join(["python3 atelier.py bench", name, *words]), "model": model, "hardware": hardware(device), "threads": threads,
            "torch": torch.__version__, "comfyui": comfyui_version.__version__, "python": platform.python_version()}


def print_targets(targets: list[dict]) -> None:
    for target in targets:
        print(f"{'reached' if target['reached'] else 'MISSED '}  {target['target']}: {target['measured']:.4g}", flush=True)


def write(report: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def end(report: dict, path: Path) -> int:
    """Prints the report's targets and where all of it is written; the exit code."""
    print_targets(report["targets"])
    write(report, path)
    print(f"\nAll numbers: {path.resolve()}")
    return 0


def run(main) -> None:
    """The end of a script: its exit code, or 130 after Ctrl-C."""
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
