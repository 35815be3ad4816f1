"""Flicker: does the stylized picture stand still where the filmed one does?"""

from __future__ import annotations

import torch

from . import pictures
from .errors import Undefined

STILL = 4 / 255  # a content's place whose values change by less stands still: noise of a camera, and of a codec


class Flicker:
    """Mean change from frame to frame, of 255, where the content stands still; everywhere without contents.

    A method's frames follow each other as in the manifest; those of one `sequence` belong together.
    """

    name, needs, better, whole = "flicker", ("generated", "sequence"), "down", True

    def __init__(self, tools):
        self.device = tools.device

    def __call__(self, items: list[dict]) -> float:
        last, found = {}, []
        for item in items:
            before = last.get(item["sequence"])
            last[item["sequence"]] = item
            if before is not None and (change := self.change(before, item)) is not None:
                found.append(change)
        if not found:
            raise Undefined("no two frames of one sequence, or nothing stands still in them")
        return 255 * sum(found) / len(found)

    def change(self, before: dict, after: dict) -> float | None:
        frame = pictures.load(after["generated"])
        change = self.difference(before["generated"], after["generated"], frame)
        if "content" not in before or "content" not in after:
            return float(change.mean())
        still = self.difference(before["content"], after["content"], frame).amax(0) <= STILL
        return float(change[:, still].mean()) if still.any() else None

    def difference(self, one, other, like) -> torch.Tensor:
        """[3, H, W] of two pictures at the size of `like`."""
        a, b = (pictures.as_batch(pictures.like(pictures.load(path), like), self.device)[0] for path in (one, other))
        return (a - b).abs()
