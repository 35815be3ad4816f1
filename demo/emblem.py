"""The project's icon and banner: one person, and three people, in the demo renderer's styles.

``python headless/pack.py demo.emblem`` writes docs/registry/icon.png (400 x 400) and banner.jpg (21 : 9).
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from .portraits import sample_identities, select
from .styles import NAMES, render

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "registry"
ICON, BANNER = ("photo", "popart", "ink", "neon"), ("photo", "watercolor", "popart", "ink", "neon", "cartoon", "sepia")


def drawn(people: dict, number: int, style: str, side: int) -> Image.Image:
    """Person `number` in a style, `side` pixels wide."""
    generator = torch.Generator().manual_seed(number)
    picture = render(select(people, slice(number, number + 1)), torch.tensor([NAMES.index(style)]), torch.tensor([number % 4]), generator)
    return Image.fromarray((picture[0].movedim(0, -1) * 255).round().byte().numpy()).resize((side, side), Image.Resampling.LANCZOS)


def mosaic(rows: list, side: int) -> Image.Image:
    """Rows of tiles without gaps."""
    picture = Image.new("RGB", (len(rows[0]) * side, len(rows) * side))
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            picture.paste(tile, (x * side, y * side))
    return picture


def main() -> None:
    people = sample_identities(8, torch.Generator().manual_seed(4))
    FOLDER.mkdir(exist_ok=True)
    tiles = [drawn(people, 0, style, 200) for style in ICON]
    mosaic([tiles[:2], tiles[2:]], 200).save(FOLDER / "icon.png", optimize=True)
    rows = [[drawn(people, number, style, 180) for style in BANNER] for number in (0, 3, 5)]
    mosaic(rows, 180).save(FOLDER / "banner.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main()
