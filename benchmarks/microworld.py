"""ZePo's claims, measured in the microworld: ``python3 atelier.py bench microworld [--pairs N] [--write FILE]``.

The tables of ``docs/microworld.md``. Every number speaks of the demo's procedural portraits, none of photographs.
"""

import argparse
import json
from pathlib import Path

import torch

from ..demo.measure import Studio, held_out_pairs

COLUMNS = ("style", "other", "as reference", "identity", "structure", "face")
# Table 3 of the paper (with feature merge, then without): CLIP-IQA, LPIPS, style loss.
PAPER_STEPS = {1: ((.753, .242, 2.357), (.766, .226, 2.411)), 2: ((.781, .326, 2.181), (.779, .313, 2.228)),
               4: ((.823, .376, 1.993), (.817, .368, 2.094)), 8: ((.835, .409, 1.848), (.844, .413, 1.994))}

INTRO = """# ZePo in the microworld

Written by `python3 atelier.py bench microworld --write docs/microworld.md`. **Every number here speaks of the demo's procedural
portraits** (see `demo/README.md`), drawn by a tiny model; none says anything about photographs. Means over held-out pairs of a
content and a reference of another person, the demo workflow's settings unless a row says otherwise.

- **style**: distance of colour moments and Gram matrices to the own reference, lower is closer; **other**: to another pair's reference.
- **as reference**: probability that the style readout gives to the reference's style.
- **identity**: error of the geometry readout against the true parameters; 1 is guessing the mean.
- **structure**: correlation of edge maps with the content's; 1 is the same outlines.
- **face**: share of pictures in which the face readout finds one.
"""


def table(title: str, head: list[str], rows: list[list]) -> str:
    cells = [[value if isinstance(value, str) else f"{value:.3f}" for value in row] for row in rows]
    lines = [" | ".join(head), " | ".join(["---"] * len(head)), *(" | ".join(row) for row in cells)]
    return f"### {title}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


class Trial:
    """Runs each variant with every seed on the same pairs and keeps the means."""

    def __init__(self, pairs: int, seeds: int):
        self.studio, self.pairs, self.seeds, self.results = Studio(), held_out_pairs(pairs), range(seeds), {}

    def __call__(self, name: str, **settings) -> list[float]:
        runs = [self.studio.judge(self.studio.stylize(self.pairs.contents, self.pairs.references, seed=seed, **settings), self.pairs) for seed in self.seeds]
        self.results[name] = {column: sum(run[column] for run in runs) / len(runs) for column in COLUMNS}
        return list(self.results[name].values())

    def given(self, name: str, pictures) -> list[float]:
        self.results[name] = self.studio.judge(pictures, self.pairs)
        return list(self.results[name].values())


def main() -> None:
    parser = argparse.ArgumentParser(prog="atelier.py bench microworld", description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=27, help="held-out pairs of content and reference (default 27: nine styles, three each)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", type=Path, help="also write the tables, as Markdown, and beside them the means as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        trial = Trial(args.pairs, args.seeds)
        text = "\n".join(tables(trial))
    print(text)
    if args.write:
        args.write.write_text(f"{INTRO}\n{text}", encoding="utf-8")
        args.write.with_suffix(".json").write_text(json.dumps(trial.results, indent=1), encoding="utf-8")


def tables(trial: Trial):
    head = ["", *COLUMNS]
    bounds = [["the content itself", *trial.given("content", trial.pairs.contents)],
              ["the content through the codec", *trial.given("codec", trial.studio.decode(trial.studio.encode(trial.pairs.contents)))],
              ["the content, rendered in the reference's style (truth)", *trial.given("oracle", trial.pairs.oracles)]]
    yield table("What the measures say of given pictures", head, bounds)
    control = [["no attention control", *trial("none", strength=0.)]]
    control += [[f"SEAC, lambda {value}", *trial(f"lambda {value}", style_enhancement=value)] for value in (.8, 1., 1.2, 1.4)]
    control += [["conventional control: K, V of the reference alone", *trial("replace", style_enhancement=1., share=1.)]]
    yield table("Attention control (the paper's figure 5)", head, control)
    steps = []
    for merged, label in ((.5, "with merge"), (0., "without")):
        for count, paper in PAPER_STEPS.items():
            quality, lpips, loss = paper[0 if merged else 1]
            measured = trial(f"steps {count} merge {merged}", steps=count, merge=merged)
            steps.append([f"{count}, {label}", *measured, f"{quality}", f"{lpips}", f"{loss}"])
    yield table("Sampling steps and token merge (the paper's table 3)", [*head, "paper: CLIP-IQA", "paper: LPIPS", "paper: style loss"], steps)
    yield table("Timestep of the features (the paper's figure 7)", head, [[f"t = {t}", *trial(f"t {t}", timestep=t)] for t in (0, 99, 199, 299, 399, 499)])
    unseen = Trial.__new__(Trial)
    unseen.studio, unseen.pairs, unseen.seeds, unseen.results = trial.studio, held_out_pairs(12, styles=("blueprint", "glass")), trial.seeds, {}
    rows = [["no attention control", *unseen("none", strength=0.)], ["SEAC, lambda 1.2", *unseen("lambda 1.2")], ["K, V of the reference alone", *unseen("replace", style_enhancement=1., share=1.)]]
    trial.results |= {f"unseen {name}": value for name, value in unseen.results.items()}
    yield table("References in styles the model never saw", head, rows)


if __name__ == "__main__":
    main()
