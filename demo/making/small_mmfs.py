"""Trains the microworld's MMFS: ``python headless/pack.py --cpu demo.making.small_mmfs FOLDER [--processes N]``.

The portraits, the guides, the StyleGAN2 of stylized portraits, and phases 1 to 3 follow each other in FOLDER, with the
numbers of small_mmfs.json; sheets, metrics and the files for the nodes lie in a folder for each phase. What is there is
not made again, and the same command goes on where it was interrupted. `--until PHASE` ends there. Phase 4 learns one
style at a time: MMFS Few-shot does it, and measure_mmfs measures it.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
import torch.distributed as group

from ...training.mmfs import train
from ...training.stage import log, processes, share_work, writes
from . import small_guides, small_portraits

CONFIG = Path(__file__).with_suffix(".json")
FOLDERS = {"stylegan2": "g", "1": "1", "2": "2", "3": "3"}


def call(folder: Path, phase: str, numbers: dict, device: str) -> list[str]:
    """The words of the train-mmfs command for a phase; phases find what went before in `folder`."""

    def made(before):
        return folder / FOLDERS[before] / f"{train.NAMES[before]}.pt"

    data, guides = folder / "data", folder / "guides"
    takes = {
        "stylegan2": {"art": data / "art.npy"},
        "1": {"stylegan2": made("stylegan2")},
        "2": {
            "init": made("1"),
            "photos": data / "photos.npy",
            "art": data / "art.npy",
            "dino": guides / "dino.safetensors",
        },
        "3": {"init": made("2"), "photos": data / "photos.npy", "clip": guides / "clip"},
    }[phase]
    words = ["--phase", phase, "--out", str(folder / FOLDERS[phase]), "--device", device]
    for name, value in {**takes, **numbers}.items():
        words += [f"--{name}", str(value)]
    return words


def run(folder: Path, config: dict, until: str, device: str, people: int, share: float) -> int:
    """Everything up to phase `until`; share: of the guides' steps."""
    if writes():
        small_portraits.main(folder / "data", people)
        if not (folder / "guides" / "scores.json").exists():
            small_guides.main(folder / "guides", min(people, small_guides.PEOPLE), share)
    for phase in FOLDERS:
        meet()
        out = folder / FOLDERS[phase] / f"{train.NAMES[phase]}.pt"
        if out.exists():
            log.info("%s is there", out)
        elif code := train.main(call(folder, phase, config[phase], device)):
            return code
        if phase == until:
            break
    return 0


def meet() -> None:
    if processes() > 1:
        group.barrier()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, default=CONFIG, help="in place of small_mmfs.json")
    parser.add_argument("--until", choices=list(FOLDERS), default="3")
    parser.add_argument(
        "--people", type=int, default=12_000, help="photos, and as many stylized portraits (default 12000)"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the guides' steps (default 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.folder.mkdir(parents=True, exist_ok=True)
    share_work(args.folder, args.processes)
    config = json.loads(args.config.read_text(encoding="utf-8"))
    return run(args.folder.resolve(), config, args.until, args.device, args.people, args.share)


if __name__ == "__main__":
    raise SystemExit(main())
