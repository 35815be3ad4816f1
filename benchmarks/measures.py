"""Do measures of style and identity rank as the truth does? ``python3 atelier.py bench measures [--write FILE]``.

Renders of the demo's world, of which person, style and palette are known, and the demo's own judges: networks that were
trained on such renders, and style features of fixed random filters. Nothing here speaks of photographs, nor of the
published networks.
"""

import argparse
import json
from pathlib import Path

import torch

from ..demo import checkpoint, faces
from ..demo.judges import style_features
from ..demo.measure import HELD_OUT_SEED
from ..demo.measure_faces import ranks
from ..demo.portraits import sample_identities
from ..demo.styles import HELD_OUT, NAMES, render

PALETTES = 4


def correlation(measure: torch.Tensor, truth: torch.Tensor) -> float:
    """Spearman's rank correlation of two lists [n], ties sharing their mean rank."""
    a, b = (ranks(values.double()) for values in (measure, truth))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())


def identity(count: int, generator: torch.Generator) -> dict[str, dict[str, float]]:
    """Per style: renders of `count` people against photos of all of them, measured by each recogniser.

    "rank": correlation of cosines with those of the true embeddings, over all pairs;
    "first": how often the right person comes first.
    """
    networks, who = faces.load_recognisers(), sample_identities(count, generator)
    truth = faces.identity_of(who)
    variant = torch.randint(PALETTES, (count,), generator=generator)
    photos = render(who, torch.zeros_like(variant), variant, generator)
    again = torch.randint(PALETTES, (count,), generator=generator)
    results = {}
    for number, name in enumerate(NAMES):
        pictures = render(who, torch.full((count,), number), again, generator)
        for called, network in (("own", networks.own), ("judge", networks.judge)):
            cosines = network.embed(pictures) @ network.embed(photos).T
            results[f"identity, {called} recogniser, {name}"] = {
                "rank": correlation(cosines.flatten(), (truth @ truth.T).flatten()),
                "first": float((cosines.argmax(1) == torch.arange(count)).double().mean())}
    return results


def style(count: int, generator: torch.Generator) -> dict[str, dict[str, float]]:
    """Per style: renders of `count` people against references of other people in every style and palette.

    The truth is 2 for the same style and palette, 1 for the same style, else 0. "rank": correlation with it, mean over
    pictures; "first": how often a reference of the right style comes first.
    """
    world = checkpoint.load(checkpoint.PATH)
    styles = torch.arange(len(NAMES)).repeat_interleave(PALETTES)
    palettes = torch.arange(PALETTES).repeat(len(NAMES))
    references = render(sample_identities(len(styles), generator), styles, palettes, generator)
    people, results = sample_identities(count, generator), {}

    def described(pictures):
        return {"style features": style_features(pictures) / world.spread,
                "style readout": world.judges(pictures)["style"].log_softmax(1)}

    theirs = described(references)
    for number, name in enumerate(NAMES):
        variant = torch.randint(PALETTES, (count,), generator=generator)
        ours = described(render(people, torch.full((count,), number), variant, generator))
        same = (styles == number).double()[None] * (1 + (palettes[None] == variant[:, None]))
        for measure, described_references in theirs.items():
            near = torch.stack([-(row - described_references).clamp(-6, 6).pow(2).mean(1) for row in ours[measure]])
            results[f"style, {measure}, {name}"] = {
                "rank": sum(correlation(row, truth) for row, truth in zip(near, same)) / count,
                "first": float((styles[near.argmax(1)] == number).double().mean())}
    return results


def table(results: dict[str, dict[str, float]]) -> str:
    lines = ["| measure | style of the picture | rank correlation | right one first |", "| --- | --- | --- | --- |"]
    for key, found in results.items():
        kind, measure, name = key.split(", ")
        unseen = " (unseen by the model)" if name in HELD_OUT else ""
        lines.append(f"| {kind}, {measure} | {name}{unseen} | {found['rank']:.3f} | {found['first']:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="atelier.py bench measures", description=__doc__.split("\n\n")[0])
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--write", type=Path, help="also write the table, as Markdown, and the figures, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(HELD_OUT_SEED + 1)
        results = identity(args.people, generator) | style(args.people, generator)
    text = table(results)
    print(text)
    if args.write:
        intro = __doc__.split("\n\n", 1)[1].strip()
        how = f"Rank correlation is Spearman's, {args.people} people nobody trained on."
        title = "# Do the measures rank as the truth does?"
        args.write.write_text("\n\n".join([title, intro, how, text]), encoding="utf-8")
        args.write.with_suffix(".json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
