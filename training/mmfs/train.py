"""Trains MMFS: ``python3 atelier.py train-mmfs --phase {stylegan2,1,2,3,4} --out DIR ...``

stylegan2: a generator of stylized portraits, from --art.
1: the encoder, from --stylegan2.
2: photos become art, from --init, --photos, --art and --dino.
3: the CLIP mapper, from --init, --photos and --clip.
4: one style, from --init, --photos, --clip, --dino and --image or --text.

--init and --stylegan2 take the .pt file of the phase before, which has the discriminator with it. Into DIR go
NAME.safetensors (the running average, for the nodes), NAME.pt (with the discriminator, for the next phase),
metrics.jsonl and sheet-STEP.png. An interrupted training goes on where it last saved itself when the same command is
given again. The numbers of each phase are in training/mmfs/config. You answer for the rights in your pictures.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path

import torch
from PIL import Image

from ...evaluation.errors import EvaluationError
from ...stylegan import checkpoints
from ..stage import Stage, log, processes, share_work, store, writes
from .data import Pictures
from .few_shot import ANCHOR, ENOUGH, FewShot, NotFinite, Settings, Target
from .guides import Guides
from .phases import Base, Encoder, Mapper, StyleGAN2, Tuned

CONFIG = Path(__file__).with_name("config")
NAMES = {"stylegan2": "stylegan2", "1": "1-encoder", "2": "2-base", "3": "3-mapper", "4": "4-few-shot"}
NEEDS = {
    "stylegan2": ("art",),
    "1": ("stylegan2",),
    "2": ("init", "photos", "art", "dino"),
    "3": ("init", "photos", "clip"),
    "4": ("init", "photos", "clip", "dino"),
}
NUMBERS = {
    "steps": int,
    "batch": int,
    "micro_batch": int,
    "rate": float,
    "ema": float,
    "augment": float,
    "r1": float,
    "structure": float,
    "sheet_every": int,
    "levels": int,
}
TOLD_EVERY = 20  # steps of a line in metrics.jsonl
SIDE = 512


class Refused(ValueError):
    """The call cannot be followed; the message says why."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="atelier.py train-mmfs",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--phase", choices=list(NAMES), required=True)
    add("--out", type=Path, required=True, metavar="DIR", help="where everything is written")
    add("--art", type=Path, metavar="PATH", help="stylized portraits: a folder, or a .npy of uint8 [n, 3, h, w]")
    add("--photos", type=Path, metavar="PATH", help="photos of faces, cut out and upright: likewise")
    add("--stylegan2", type=Path, metavar="FILE", help="a StyleGAN2 with `g_ema` and `d`")
    add("--init", type=Path, metavar="FILE", help="the .pt of the phase before; for phase 4 any file with a mapper")
    add("--clip", type=Path, metavar="DIR", help="a CLIP model's folder: config.json, model.safetensors")
    add("--dino", type=Path, metavar="FILE", help="DINO ViT-B/8: dino_vitbase8_pretrain.pth")
    add("--image", type=Path, metavar="FILE", help="phase 4: a picture of the style")
    add("--text", help="phase 4: words for the style")
    add(
        "--size",
        type=int,
        help="pixels a side (default: the discriminator's or the file's own; stylegan2: by channels)",
    )
    for name, kind in NUMBERS.items():
        add("--" + name.replace("_", "-"), type=kind, metavar="N", help="in place of the phase's own")
    add("--lr", type=float, dest="rate", metavar="X", help="learning rate")
    add("--channels", metavar="N,N,...", help="stylegan2: widths at 4, 8, 16 ... pixels; narrow ones train on a CPU")
    add("--style", type=int, metavar="N", help="stylegan2: width of z and w, and of CLIP's features in phase 3")
    add("--cold", action="store_true", help="phase 1: decoder0 and to_rgb0 begin at random, as in the published code")
    add("--seed", type=int, default=0)
    add("--save-every", type=float, default=180.0, metavar="SECONDS", help="between saves (default 180)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=1, help="of a CPU, in each process (default 1)")
    add("--processes", type=int, default=1, help="that train together, on an idle CPU one for each core (default 1)")
    add("--folder", type=Path, default=Path(), help=argparse.SUPPRESS)  # atelier.py's: what relative paths start from
    return made


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in ("out", "art", "photos", "stylegan2", "init", "clip", "dino", "image"):
        path = getattr(args, name)
        if path is not None:
            setattr(args, name, Path(os.path.abspath(args.folder / path.expanduser())))
    try:
        check(args)
        args.out.mkdir(parents=True, exist_ok=True)
        if args.device == "cpu":
            torch.set_num_threads(args.threads)
        share_work(args.out, args.processes)
        run(args)
    except (Refused, EvaluationError, ValueError) as error:
        log.error("train-mmfs: %s", error)
        return 2
    return 0


def check(args) -> None:
    """Raises Refused for a call that lacks something."""
    lacking = [name for name in NEEDS[args.phase] if getattr(args, name) is None]
    if lacking:
        raise Refused(f"phase {args.phase} needs {', '.join('--' + name for name in lacking)}")
    if args.phase == "4" and (args.image is None) == (not (args.text or "").strip()):
        raise Refused("phase 4 takes one of --image and --text")
    for name in ("art", "photos", "stylegan2", "init", "clip", "dino", "image"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            raise Refused(f"--{name} {path} is not there")
    if args.phase == "4" and args.processes > 1:
        raise Refused("phase 4 trains in one process")


def settings_of(args) -> dict:
    """The phase's file, and what the call says instead."""
    settings = json.loads((CONFIG / f"{NAMES[args.phase]}.json").read_text(encoding="utf-8"))
    given = {name: getattr(args, name) for name in [*NUMBERS, "style"] if getattr(args, name) is not None}
    if args.channels:
        given["channels"] = [int(number) for number in args.channels.split(",")]
    if args.cold:
        given["cold"] = True
    odd = [name for name in given if name not in settings]
    if odd:
        raise Refused(f"phase {args.phase} has no {', '.join('--' + name.replace('_', '-') for name in odd)}")
    return {**settings, **given}


def run(args) -> None:
    settings = settings_of(args)
    torch.manual_seed(args.seed)
    phase, metadata = make(args, settings)
    name, journal = NAMES[args.phase], Journal(args.out / "metrics.jsonl")
    try:
        stage = Stage(args.out / f"{name}.progress", settings["steps"], save_every=args.save_every, **phase.parts)
    except (RuntimeError, KeyError, ValueError) as error:
        raise Refused(
            f"{args.out / name}.progress belongs to a training with other networks, or is damaged: give another "
            f"--out, or remove it ({str(error).splitlines()[0]})"
        ) from None
    log.info(
        "phase %s: %d steps of %d pictures at %d x %d on %s, %d process(es)",
        args.phase,
        settings["steps"],
        settings["batch"],
        phase.size,
        phase.size,
        args.device,
        processes(),
    )
    journal.drop_from(stage.step)
    every = settings.get("sheet_every", 50)
    try:
        for number, _ in stage:
            told = phase.step(number)
            stage.tell(torch.as_tensor(told["loss"]))
            if writes():
                journal.note(number + 1, told)
                if (number + 1) % every == 0:
                    sheet(phase.rows(), args.out / f"sheet-{number + 1:06}.png")
    except NotFinite as error:
        log.error("ended early: %s; what was trained before it is kept", error)
    if writes():
        journal.flush()
        sheet(phase.rows(), args.out / f"sheet-{stage.step:06}.png")
        finish(args, phase, metadata)


def make(args, settings: dict):
    """(the phase, what its file says of it)"""
    device, size = args.device, args.size
    metadata = {"phase": args.phase, "recipe": json.dumps(settings)}
    if args.phase == "stylegan2":
        size = 2 ** (len(settings["channels"]) + 1)
        return StyleGAN2(settings, Pictures(args.art, size), device), {"recipe": metadata["recipe"]}
    if args.phase == "1":
        found = checkpoints.read(args.stylegan2)
        network = checkpoints.warm_start(found, settings["cold"], settings["levels"])
        judge = checkpoints.discriminator(found)
        metadata["parent"] = checkpoints.fingerprint(args.stylegan2)
        return Encoder(settings, checkpoints.network(found), network, judge, device), metadata
    found = checkpoints.read(args.init)
    if found.kind != "stylizer":
        raise Refused(f"--init {args.init} is a StyleGAN2 generator: phase 1 makes a stylizer of it")
    network = checkpoints.network(found)
    metadata["parent"] = checkpoints.fingerprint(args.init)
    guides = Guides(args.clip, args.dino, device)
    if args.phase == "4":
        if network.clip_mapper is None:
            raise Refused(f"--init {args.init} has no CLIP mapper (phase 2 file): phase 3 trains it")
        size = size or int(found.metadata.get("size", 0)) or judged_size(found) or SIDE
        return few_shot(args, settings, network, guides, size, metadata), metadata
    judge = checkpoints.discriminator(found)
    size = size or judge.size
    if size != judge.size:
        raise Refused(f"--size {size}, but the discriminator of {args.init} sees {judge.size} x {judge.size}")
    photos = Pictures(args.photos, size)
    if args.phase == "2":
        return Base(settings, network, judge, photos, Pictures(args.art, size), guides, device), metadata
    check_width(network, guides, args.clip)
    return Mapper(settings, network, judge, photos, guides, device), metadata


def judged_size(found: checkpoints.Checkpoint) -> int | None:
    return checkpoints.discriminator(found).size if found.discriminator else None


def check_width(network, guides: Guides, clip: Path) -> None:
    if guides.clip.width != network.style:
        raise Refused(
            f"features of {clip} are {guides.clip.width} wide, the styles of --init {network.style}: the mapper "
            "needs a CLIP of its width (512: clip-vit-base-patch32)"
        )


def few_shot(args, settings: dict, network, guides: Guides, size: int, metadata: dict) -> Tuned:
    check_width(network, guides, args.clip)
    photos = Pictures(args.photos, size)
    if len(photos) < ENOUGH:
        log.warning("%d photos: fewer than %d may be learnt by heart", len(photos), ENOUGH)
    if args.image is not None:
        target = Target(*guides.style(args.image))
    else:
        target = Target(guides.words(args.text), anchor=guides.words(ANCHOR))
    metadata["prompt"] = args.text or args.image.name
    chosen = Settings(**{name: settings[name] for name in Settings.__dataclass_fields__})
    return Tuned(FewShot(network.to(args.device), guides, photos, target, chosen, args.seed), size)


class Journal:
    """metrics.jsonl: a line for every `TOLD_EVERY` steps, of their means."""

    def __init__(self, path: Path):
        self.path, self.waiting, self.step = path, [], 0

    def drop_from(self, step: int) -> None:
        """Lines after `step` are of steps that an interruption lost."""
        if writes() and self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= step]
            self.path.write_text("".join(line + "\n" for line in lines))

    def note(self, step: int, told: dict) -> None:
        self.step = step
        self.waiting.append(told)
        if step % TOLD_EVERY == 0:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            names = dict.fromkeys(name for told in self.waiting for name in told)
            values = {name: [float(told[name]) for told in self.waiting if name in told] for name in names}
            line = {"step": self.step, **{name: round(sum(value) / len(value), 6) for name, value in values.items()}}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.waiting = []


def sheet(rows: list[torch.Tensor], path: Path) -> None:
    """[rows][n, 3, S, S] in [-1, 1] -> a PNG."""
    width = max(map(len, rows))
    table = torch.full((len(rows), width, *rows[0].shape[1:]), 1.0)
    for at, row in enumerate(rows):
        table[at, : len(row)] = row.float().cpu()
    pixels = table.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()).save(path)


def finish(args, phase, metadata: dict[str, str]) -> None:
    """The average as safetensors, and with the discriminator as the next phase wants it."""
    name = NAMES[args.phase]
    state = {key: value.detach().cpu().contiguous() for key, value in phase.average.state_dict().items()}
    checkpoints.save(args.out / f"{name}.safetensors", state, {**metadata, "size": str(phase.size)})
    if phase.discriminator is not None:
        judge = {key: value.detach().cpu().contiguous() for key, value in phase.discriminator.state_dict().items()}
        mine, theirs = ("g_ema", "d") if args.phase == "stylegan2" else ("G_ema_model", "D_model")
        store(args.out / f"{name}.pt", {mine: state, theirs: judge})
    log.info("wrote %s", args.out / f"{name}.safetensors")


if __name__ == "__main__":
    sys.exit(main())
