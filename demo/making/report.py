"""What became of a training: figures and sheets of held-out people, written beside the weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from PIL import Image

from .. import judges
from ..measure import HELD_OUT_SEED, Studio, held_out_pairs
from ..portraits import sample_identities
from ..styles import NAMES, TRAINED, VARIANTS, render
from . import codec as codec_stage

log = logging.getLogger("portrait_atelier")

EACH = 12          # people of a style in the figures
SEAC = {"no control": {"strength": 0.}, "lambda 0.8": {"style_enhancement": .8},
        "lambda 1.2": {"style_enhancement": 1.2}, "lambda 1.4": {"style_enhancement": 1.4}, "reference alone": {"share": 1.}}


def write(packed: Path, folder: Path, pairs: int = 27) -> dict:
    """Figures of a packed file, as ``report.json`` and PNG sheets in the folder."""
    with torch.inference_mode():
        studio = Studio(packed)
        figures = {"codec": codec_figures(studio), "text to picture": picture_figures(studio, folder),
                   "SEAC": stylization(studio, folder, pairs)}
    (folder / "report.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    log.info("wrote report.json and sheets to %s: %s", folder, figures)
    return figures


def renders(style: str, count: int, seed: int = HELD_OUT_SEED + 1) -> torch.Tensor:
    """[count, 3, 256, 256] of held-out people."""
    generator = torch.Generator().manual_seed(seed)
    who, variant = sample_identities(count, generator), torch.randint(VARIANTS, (count,), generator=generator)
    return render(who, torch.full((count,), NAMES.index(style)), variant, generator)


def codec_figures(studio: Studio) -> dict[str, float]:
    """Decibels of photos and of the other styles; what noise of .3 on the latents costs; ratios of cells."""
    each = EACH // 2
    x = torch.cat([renders(style, each) for style in NAMES]) * 2 - 1
    told = codec_stage.measure(studio.world.codec, x)
    return {"photos": float(told["clean"][:each].mean()), "other styles": float(told["clean"][each:].mean()),
            **{style: float(told["clean"][k * each:(k + 1) * each].mean()) for k, style in enumerate(NAMES)},
            "lost to noise": float((told["clean"] - told["noisy"]).mean()),
            "cell ratio": told["cells"], "with noise": told["noisy cells"], "of renders": told["renders' cells"]}


def edge_energy(pictures: torch.Tensor) -> float:
    """Mean length of the slope of brightness."""
    gray = pictures.mean(1)
    return float((gray.diff(dim=-1)[:, 1:] ** 2 + gray.diff(dim=-2)[..., 1:] ** 2).sqrt().mean())


def variety(pictures: torch.Tensor) -> float:
    """How different the people of one style are: mean spread of a pixel, an eighth of the size."""
    return float(torch.nn.functional.avg_pool2d(pictures, 8).std(0).mean())


def picture_figures(studio: Studio, folder: Path) -> dict[str, dict[str, float]]:
    """Text to picture in four steps, each style against renders of it; ``steps.png`` has 1, 2, 4 and 8."""
    prompts = [f"portrait, {style}" for style in TRAINED]
    row = lambda steps: torch.cat([studio.draw(prompt, 1, steps, seed=7 + k) for k, prompt in enumerate(prompts)])
    save_sheet(torch.stack([row(steps) for steps in (1, 2, 4, 8)]), folder / "steps.png")
    save_sheet(torch.stack([studio.draw(prompt, 4, seed=3) for prompt in prompts], 1), folder / "people.png")
    figures = {}
    for style in TRAINED:
        drawn, truth = studio.draw(f"portrait, {style}", EACH, seed=11), renders(style, EACH)
        told = studio.world.judges(drawn)
        figures[style] = {
            "edges": edge_energy(drawn) / edge_energy(truth), "variety": variety(drawn) / variety(truth),
            "cell ratio": codec_stage.cell_ratio(drawn) / codec_stage.cell_ratio(truth),
            "faces": float((told["face"] > 0).float().mean()),
            "style read": float((told["style"].argmax(1) == NAMES.index(style)).float().mean())}
    return figures


def stylization(studio: Studio, folder: Path, count: int) -> dict[str, dict[str, float]]:
    """The demo workflow on held-out pairs, with the truth; ``seac.png`` shows the first nine."""
    pairs = held_out_pairs(count)
    drawn = {name: studio.stylize(pairs.contents, pairs.references, **settings) for name, settings in SEAC.items()}
    drawn["truth"] = pairs.oracles
    save_sheet(torch.stack([x[:9] for x in (pairs.contents, pairs.references, *drawn.values())]), folder / "seac.png")
    return {name: {**studio.judge(x, pairs), "cell ratio": codec_stage.cell_ratio(x)} for name, x in drawn.items()}


def save_sheet(pictures: torch.Tensor, path: Path, side: int = 160) -> None:
    """[rows, columns, 3, S, S] from 0 to 1 -> a PNG."""
    shrink = lambda row: torch.nn.functional.interpolate(row, (side, side), mode="area")
    small = torch.stack([shrink(row) for row in pictures.clamp(0, 1).cpu()])
    table = (small.permute(0, 3, 1, 4, 2).reshape(side * len(small), -1, 3) * 255).round().byte()
    Image.fromarray(table.numpy()).save(path)
