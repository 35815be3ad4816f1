"""The pictures the demo is trained on, rendered once: ``pictures.npy`` and ``words.npy``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..portraits import FURTHEST, ZOOM, caption_words, draw, sample_identities
from ..styles import NAMES, TRAINED, VARIANTS, paint
from ..text import INDEX

SEED = 2_000_000
PEOPLE = 8            # drawn at a time
WORDS = 20            # most phrases a caption can hold before some are dropped
STYLES_EACH = 5
FAR = .12              # share of the people who stand further back
HELD_OUT = .02        # share of the pictures that no stage learns from


def held_out(count: int) -> int:
    """How many of so many pictures, the first, no stage learns from: those of whole batches of people."""
    block = PEOPLE * STYLES_EACH
    return int(count * HELD_OUT) // block * block


def render(folder: Path, identities: int, device: str) -> None:
    """pictures.npy: uint8 [identities * STYLES_EACH, 3, 256, 256]; words.npy: full captions as phrase numbers [.., WORDS].

    Interrupted, it goes on behind the last batch of people whose captions are written.
    """
    count = identities * STYLES_EACH
    shapes = {"pictures": (np.uint8, (count, 3, 256, 256)), "words": (np.int64, (count, WORDS))}
    tables = {}
    for name, (kind, shape) in shapes.items():
        part = folder / f"{name}.part"
        there = part.exists()
        tables[name] = np.lib.format.open_memmap(part, "r+" if there else "w+", kind, None if there else shape)
    for first in range(0, identities, PEOPLE):
        row = first * STYLES_EACH
        if tables["words"][row + PEOPLE * STYLES_EACH - 1, 0]:
            continue
        for pictures, words in batch(first, device):
            tables["pictures"][row:row + PEOPLE], tables["words"][row:row + PEOPLE] = pictures, words
            row += PEOPLE
    for name, table in tables.items():
        table.flush()
        (folder / f"{name}.part").rename(folder / f"{name}.npy")


def batch(number: int, device: str):
    """PEOPLE people from a seed of their own, each in STYLES_EACH styles -> uint8 pictures and words [PEOPLE, ..]."""
    generator = torch.Generator().manual_seed(SEED + number)
    trained = torch.tensor([NAMES.index(name) for name in TRAINED])
    who = sample_identities(PEOPLE, generator)
    far = torch.rand(PEOPLE, generator=generator) < FAR
    times = torch.where(far, 1.5 + (FURTHEST - 1.5) * torch.rand(PEOPLE, generator=generator), 1.)
    layers = draw({name: value.to(device) for name, value in who.items()}, zoom=(ZOOM * times).to(device))
    order = torch.rand(PEOPLE, len(trained), generator=generator)
    order[:, 0] -= .35                                        # more photos: they are the contents
    chosen = trained[order.argsort(1)[:, :STYLES_EACH]]
    for k in range(STYLES_EACH):
        variant = torch.randint(VARIANTS, (PEOPLE,), generator=generator)
        picture = paint(layers, chosen[:, k].to(device), variant.to(device), generator)
        words = np.zeros((PEOPLE, WORDS), np.int64)
        for b in range(PEOPLE):
            phrases = ["portrait", NAMES[chosen[b, k]], *["far"] * bool(far[b]), *caption_words(who, b)][:WORDS]
            words[b, :len(phrases)] = [INDEX[phrase] for phrase in phrases]
        yield (picture * 255).round().byte().cpu().numpy(), words


def batch_of(pictures: np.ndarray, rows, device: str) -> torch.Tensor:
    """uint8 rows of the memory map -> [B, 3, 256, 256] from -1 to 1."""
    return torch.from_numpy(np.stack([pictures[row] for row in rows])).to(device).float() / 127.5 - 1
