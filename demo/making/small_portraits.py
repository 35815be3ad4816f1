"""Photos and stylized portraits of 64 x 64 pixels, of different people, to train MMFS and its StyleGAN2 on.

``python headless/pack.py demo.making.small_portraits FOLDER [PEOPLE]`` writes photos.npy and art.npy there, uint8
[PEOPLE, 3, 64, 64] each; art.npy goes through the trained styles but the photo in turn, so that the
held-out ones are new to all networks but the guides. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..portraits import draw, sample_identities
from ..styles import TRAINED, VARIANTS, paint

SIDE, SEED, AT_ONCE = 64, 51_000_000, 16


def render(style: torch.Tensor, seed: int) -> np.ndarray:
    """uint8 [B, 3, 64, 64]: people of this seed in these styles [B]."""
    generator = torch.Generator().manual_seed(seed)
    who = sample_identities(len(style), generator)
    variant = torch.randint(VARIANTS, (len(style),), generator=generator)
    pictures = paint(draw(who, 2 * SIDE), style, variant, generator)
    return (F.avg_pool2d(pictures, 2) * 255).round().byte().numpy()


def main(folder: Path, people: int = 12_000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, name in ((1, "art"), (0, "photos")):  # StyleGAN2 begins with the art
        if (folder / f"{name}.npy").exists():
            continue
        part = folder / f"{name}.part"
        if part.exists():
            table = np.lib.format.open_memmap(part, "r+")
        else:
            table = np.lib.format.open_memmap(part, "w+", np.uint8, (people, 3, SIDE, SIDE))
        for first in range(0, people, AT_ONCE):
            if table[first].any():
                continue
            rows = torch.arange(first, min(first + AT_ONCE, people))
            style = 1 + rows % (len(TRAINED) - 1) if kind else torch.zeros_like(rows)
            table[rows[0] : rows[-1] + 1] = render(style, SEED + kind * people + first)
        table.flush()
        (folder / f"{name}.part").rename(folder / f"{name}.npy")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
