"""MMFS's claims in the microworld: ``python3 atelier.py bench microworld_mmfs --folder FOLDER [--write FILE]``.

FOLDER is what demo/making/small_mmfs.py trained. Every number speaks of procedural portraits of 64 pixels, none of
photographs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ..demo.measure_mmfs import ART, SEED, Studio, frechet, image, numbers, people, render
from ..demo.styles import HELD_OUT, NAMES
from ..host.mmfs_few_shot import DEFAULTS
from ..training.mmfs.train import sheet
from .microworld import table

RANDOM = ("distance to art", "identity", "diversity", "structure", "photo", "face")
GUIDED = ("style", "other", "as asked", "structure", "identity", "face")
# Table 1 of the paper: FID, Arcface-Dist, LPIPS.
PAPER = {
    "MUNIT": (18.96, 0.511, 0.505),
    "DRIT++": (16.18, 0.514, 0.489),
    "BlendGAN": (51.94, 0.509, 0.482),
    "MMFS": (10.39, 0.507, 0.583),
}

INTRO = """# MMFS in the microworld

Written by `python3 atelier.py bench microworld_mmfs --folder FOLDER --write docs/microworld-mmfs.md`. **Every number
here speaks of the demo's procedural portraits** (see `demo/README.md`) at 64 pixels, by a tiny network; none says
anything about photographs. People and pictures are held out; styles are all that the art has, and two that it has not.

- **distance to art** (FID): Frechet distance of the style readout's features to as many rendered portraits in all
  styles of the art.
- **identity** (Arcface-Dist): error of the geometry readout against the true parameters; 1 is guessing the mean.
- **structure**: correlation of edge maps with the photo's; 1 is the same outlines.
- **photo**: probability that the style readout gives to "photo"; a stylized picture has little.
- **diversity** (LPIPS): distance of colour moments and Gram matrices between two random styles of one photo.
- **style**, **other**: the same distance to the reference that was asked for, and to another; **as asked**:
  probability that the readout gives to its style. **face**: share of pictures in which the face readout finds one.
"""


def random_table(studio: Studio, count: int, results: dict, rows: list[torch.Tensor]) -> str:
    """The paper's table 1."""
    who = people(count)
    photos = render(who, torch.zeros(count, dtype=torch.long))
    art = studio.features(render(people(count, SEED + 10), numbers(ART, count), SEED + 10))
    truth = [render(who, numbers(ART, count).roll(turn), SEED + turn) for turn in (0, 1)]
    pairs = {"the photos themselves": (photos, photos), "the same people rendered in styles of the art (truth)": truth}
    for phase, name in (("1", "phase 1: encoder and StyleGAN2"), ("2", "phase 2: photos to art")):
        model = studio.model(phase)
        pairs[name] = [studio.random(model, photos, seed) for seed in (1_000, 2_000)]
        rows += [pair[:8] for pair in pairs[name]]
    rows.insert(0, photos[:8])
    cells = []
    for name, (one, two) in pairs.items():
        told = results[name] = {
            "distance to art": frechet(studio.features(one), art),
            **studio.kept(one, photos, who),
            "diversity": studio.distance(one, two),
        }
        cells.append([name, *(told[key] for key in RANDOM)])
    cells += [[f"{name} (paper)", *values, "", "", ""] for name, values in PAPER.items()]
    head = [
        "",
        "distance to art (paper: FID)",
        "identity (Arcface-Dist)",
        "diversity (LPIPS)",
        "structure",
        "photo",
        "face",
    ]
    return table("Random styles: the paper's table 1", head, cells)


def mean(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}


def guided_table(
    studio: Studio, learnt: torch.Tensor, styles, words: bool, count: int, steps: int, results: dict, rows: list
) -> str:
    """Figures 7 and 8: the mapper alone, fine-tuned on photos `learnt`, with a picture also without projection loss."""
    model, who = studio.model("3"), people(count)
    photos = render(who, torch.zeros(count, dtype=torch.long))
    ways = (
        {"mapper alone": None, "fine-tuned": {}}
        if words
        else {"mapper alone": None, "fine-tuned without projection": {"projection": 0.0}, "fine-tuned": {}}
    )
    runs = {way: [] for way in ways}
    for turn, name in enumerate(styles):
        number = NAMES.index(name)
        reference, other = (
            render(people(1, SEED + 30 + at), torch.tensor([NAMES.index(styles[at % len(styles)])]), SEED + at)
            for at in (turn, turn + 1)
        )
        picture, text = (None, f"{name} portrait") if words else (image(reference), "")
        for way, changes in ways.items():
            tuned = model
            if changes is not None:
                tuned = studio.tuned(model, learnt, picture, text, steps, **changes)
            drawn = studio.guided(tuned, photos, picture, text)
            runs[way].append(studio.asked(drawn, photos, who, number, *((None, None) if words else (reference, other))))
            rows.append(torch.cat([reference, drawn[:7]]))
    kind = "Words" if words else "One picture"
    which = "styles of the art" if set(styles) <= set(ART) else "styles that the art does not have"
    cells = []
    for way, told in runs.items():
        means = {key: value for key, value in mean(told).items() if value == value}  # words have no distances
        results[f"{kind}, {which}: {way}"] = means
        cells.append([way, *(means.get(key, "") for key in GUIDED)])
    return table(f"{kind}: {which} ({', '.join(styles)})", ["", *GUIDED], cells)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="atelier.py bench microworld_mmfs", description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, help="where demo/making/small_mmfs.py trained")
    parser.add_argument("--people", type=int, default=384, help="of the table of random styles (default 384)")
    parser.add_argument("--guided", type=int, default=24, help="people of the other tables (default 24)")
    parser.add_argument("--learnt", type=int, default=32, help="photos to fine-tune on (default 32)")
    parser.add_argument("--styles", type=int, default=len(ART), help="of the art, to guide to (default: all)")
    parser.add_argument("--steps", type=int, default=DEFAULTS["steps"], help="of fine-tuning")
    parser.add_argument("--write", type=Path, help="the tables as Markdown; beside them the means as JSON and a sheet")
    args = parser.parse_args(arguments)
    if args.folder is None:
        print("MMFS in the microworld: not measured. Give --folder, where demo/making/small_mmfs.py trained it.")
        return
    torch.set_num_threads(1)
    results, rows, texts = {}, [], []
    with torch.inference_mode():
        studio = Studio(args.folder)
        texts.append(random_table(studio, args.people, results, rows))
        learnt = render(people(args.learnt, SEED + 20), torch.zeros(args.learnt, dtype=torch.long))
        for styles, words in ((ART[: args.styles], False), (HELD_OUT, False), (ART[: args.styles], True)):
            texts.append(guided_table(studio, learnt, styles, words, args.guided, args.steps, results, rows))
    print("\n".join(texts))
    if args.write:
        args.write.write_text(f"{INTRO}\n" + "\n".join(texts), encoding="utf-8")
        args.write.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        sheet([row * 2 - 1 for row in rows], args.write.with_suffix(".png"))


if __name__ == "__main__":
    main()
