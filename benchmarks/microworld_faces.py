"""FastFace's claims, measured in the microworld: ``python3 atelier.py bench microworld_faces [--people N] [--write FILE]``.

The tables of ``docs/microworld-faces.md``. Every number speaks of the demo's procedural portraits, none of photographs.
"""

import argparse
import json
from pathlib import Path

import torch

from ..demo import measure_faces
from ..demo.measure_faces import REALISTIC, STYLISTIC, FaceStudio, dcg, held_out_people, sliders, summary
from ..demo.styles import TRAINED
from ..evaluation.tables import FASTFACE_1
from .microworld import table

INTRO = """# FastFace in the microworld

Written by `python3 atelier.py bench microworld_faces --write docs/microworld-faces.md`. **Every number here speaks of the demo's
procedural portraits** (see `demo/README.md`), drawn by a tiny model with a tiny adapter; none says anything about photographs. The
paper's numbers stand beside ours to compare directions, never sizes: its measures are others.

Held-out people are shown to the adapter by one photo each. Every person is drawn in four LCM steps: realistic, "portrait, photo", three
times with different noise; stylistic, once in each of the other nine trained styles. Adapter weight 0.8, the nodes' defaults. Without
decoupled guidance (DCG), guidance is 1 as for the paper's Hyper and Lightning, or 1.5 as for its LCM where a row says so. DCG at its
defaults guides in the two inner steps alone and is guidance 1 in the first and the last.

- **identity** (ID): cosine between the traits that a recogniser reads in the picture and the person's *true* traits; another
  recogniser, trained on other people, feeds the adapter. Its mean over all pictures, and **spread**, its standard deviation.
- **style** (in CLIP's place): probability that the style readout gives to the style that the prompt asks for.
- **fails** (FFC): pictures in which the face readout finds no face, per hundred. The paper counts them in all its pictures. One table
  asks for people who stand further back, whose small faces fail now and then: a face is where a recogniser is about as sure
  as of the least clear render.
"""
HEAD = ("identity", "spread", "style", "fails")
METHODS = {"adapter alone": {}, "+ AM1": {"maps": "AM1"}, "+ AM2": {"maps": "AM2"}, "+ DCG": {"guidance": dcg()},
           "+ DCG + AM1 (FF_AM1)": {"maps": "AM1", "guidance": dcg()}, "+ DCG + AM2 (FF_AM2)": {"maps": "AM2", "guidance": dcg()},
           "CFG 1.5: adapter alone": {"cfg": 1.5}, "CFG 1.5: + AM1": {"cfg": 1.5, "maps": "AM1"}, "CFG 1.5: + AM2": {"cfg": 1.5, "maps": "AM2"}}
PAPER = {"adapter alone": "Hyper (base)", "+ DCG + AM1 (FF_AM1)": "Hyper + FF_AM1", "+ DCG + AM2 (FF_AM2)": "Hyper + FF_AM2",
         "CFG 1.5: adapter alone": "LCM (base)"}
WEIGHTS = tuple(round(.1 * step, 1) for step in range(11))            # the identity slider: the adapter's weight
BETAS = tuple(round(1 + .2 * step, 1) for step in range(11))          # the style slider: beta of the inner steps


class Trial:
    def __init__(self, people: int):
        self.studio, self.people, self.results = FaceStudio(), held_out_people(people), {}
        self.identities = self.studio.identities(self.people)
        self.nobody = [None] * people
        # every person is asked for the next one's picture
        self.others = self.identities[1:] + self.identities[:1]

    def few(self, people: int) -> measure_faces.People:
        return measure_faces.People(self.people.photos[:people], {name: value[:people] for name, value in self.people.who.items()})

    def __call__(self, name: str, styles: tuple[str, ...], identities=None, **settings) -> dict[str, torch.Tensor]:
        measures = self.studio.portraits(self.people, self.identities if identities is None else identities, styles, **settings)
        self.results[name] = summary(measures)
        return measures


def joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def row(label: str, measures: dict[str, torch.Tensor]) -> list:
    return [label, *(summary(measures)[name] for name in HEAD)]


def tables(trial: Trial, grid_people: int):
    sets = {"realistic": REALISTIC, "stylistic": STYLISTIC}
    bounds = []
    for name, styles in sets.items():
        bounds.append(row(f"{name}: the person rendered in the style (truth, through the codec)", trial.studio.rendered(trial.people, styles)))
        bounds.append(row(f"{name}: no adapter", trial(f"{name} none", styles, trial.nobody)))
        bounds.append(row(f"{name}: adapter, shown somebody else", trial(f"{name} somebody else", styles, trial.others)))
    yield table("What the measures say of given pictures", ["", *HEAD], bounds)
    runs = {}
    for lora in (1., .5):
        for name, styles in sets.items():
            for method, settings in METHODS.items():
                runs[lora, name, method] = trial(f"{name} {method} lora {lora:g}", styles, lora=lora, **settings)
    yield paper_table(trial, runs)
    for lora in (1., .5):
        for name in sets:
            yield table(f"{name.capitalize()} prompts alone, lora_strength {lora:g}", ["", *HEAD], [row(method, runs[lora, name, method]) for method in METHODS])
    yield far_table(trial)
    yield grid(trial, grid_people)


def far_table(trial: Trial) -> str:
    """Pictures without a face: small ones are drawn badly now and then."""
    truth = trial.studio.rendered(trial.people, TRAINED, far=True)
    rows = [row("truth, through the codec", truth)]
    trial.results["far truth"] = summary(truth)
    for method, settings in METHODS.items():
        rows.append(row(method, trial(f"far {method}", TRAINED, far=True, **settings)))
    return table('People who stand further back ("portrait, far, STYLE"); the face is looked for', ["", *HEAD], rows)


def paper_table(trial: Trial, runs: dict) -> str:
    """Table 1 of the paper in its form, with the microworld's numbers and the paper's for Hyper and LCM."""
    rows = []
    for method in METHODS:
        cells = []
        for lora in (1., .5):
            means = trial.results[f"joint {method} lora {lora:g}"] = summary(joined([runs[lora, name, method] for name in ("realistic", "stylistic")]))
            cells += [f"{means['identity']:.3f} ± {means['spread']:.3f}", f"{means['style']:.3f}", f"{means['fails']:.1f}"]
        rows.append([method, "microworld", *cells])
        if method in PAPER:
            rows.append(printed(PAPER[method]))
    rows += [printed("LCM + FF_AM1"), printed("LCM + FF_AM2")]
    head = ["", "", "lora 1.0: ID", "style (paper: CLIP)", "fails (paper: FFC)", "lora 0.5: ID", "style (paper: CLIP)", "fails (paper: FFC)"]
    return table("The paper's table 1, in the microworld: realistic and stylistic prompts together", head, rows)


def printed(model: str) -> list[str]:
    """A row of the paper's table 1."""
    identity, clip, _, fails, identity_half, clip_half, _, fails_half = FASTFACE_1[model]
    return [model, "paper", *map(str, (identity, clip, fails, identity_half, clip_half, fails_half))]


def grid(trial: Trial, people: int) -> str:
    """Identity and style on an 11 x 11 grid of the adapter's weight and beta."""
    few = trial.few(people)
    styles = STYLISTIC[::2]
    identity, style = torch.zeros(len(WEIGHTS), len(BETAS)), torch.zeros(len(WEIGHTS), len(BETAS))
    for i, weight in enumerate(WEIGHTS):
        for j, beta in enumerate(BETAS):
            measures = trial.studio.portraits(few, trial.identities[:people], styles, weight=weight, guidance=dcg("1", f"1, {beta}, {beta}, 1"))
            identity[i, j], style[i, j] = measures["identity"].mean(), measures["odds"].mean()
    told = sliders(identity, style)
    trial.results["sliders"] = {**told, "weights": WEIGHTS, "betas": BETAS, "identity": identity.tolist(), "style": style.tolist()}
    head = ["weight \\ beta", *(f"{beta:g}" for beta in BETAS)]
    block = lambda values: [[f"{weight:g}", *(f"{value:.2f}" for value in line)] for weight, line in zip(WEIGHTS, values.tolist())]
    return "\n".join([
        "## Two sliders\n",
        f"The identity slider is the adapter's weight (rows), the style slider beta of Decoupled CFG in the two inner steps (columns; alpha 1). "
        f"{people} people, {len(styles)} styles, the same noise everywhere.\n",
        table("Identity", head, block(identity)), table("Style, as log-odds (its probability is close to 1 everywhere)", head, block(style)),
        table("Monotony and cross-talk", ["", "identity", "style"], [
            ["rank correlation with its own slider, mean", told["identity by its slider"], told["style by its slider"]],
            ["the least of the eleven", told["least"], told["least of style"]],
            ["rank correlation with the other slider, mean", told["identity by the style slider"], told["style by the identity slider"]],
            ["moved by the other slider, as a share of its own", told["cross-talk on identity"], told["cross-talk on style"]]])])


def main() -> None:
    parser = argparse.ArgumentParser(prog="atelier.py bench microworld_faces", description=__doc__.split("\n\n")[0])
    parser.add_argument("--people", type=int, default=24, help="held-out people (default 24)")
    parser.add_argument("--grid-people", type=int, default=8, help="of them on the 11 x 11 grid (default 8)")
    parser.add_argument("--write", type=Path, help="also write the tables, as Markdown, and beside them the means as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        trial = Trial(args.people)
        text = "\n".join(tables(trial, args.grid_people))
    print(text)
    if args.write:
        args.write.write_text(f"{INTRO}\n{text}", encoding="utf-8")
        args.write.with_suffix(".json").write_text(json.dumps(trial.results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
