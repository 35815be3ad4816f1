"""Where in the picture a patch acts: one policy for the MASK sockets of all patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...attention.masks import mask_on_grid
from ...segmentation.masks import check_aspect, checked
from .calls import Call


@dataclass(frozen=True, eq=False)
class Region:
    """The mask of a patch, [images, height, width] in [0, 1], None for everywhere; `node` says so of what.

    size: the connected mask's (height, width), which a run compares with its latent, None where none was connected.
    """

    node: str
    mask: torch.Tensor | None = None
    size: tuple[int, int] | None = None

    @classmethod
    def of(cls, node: str, mask: torch.Tensor | None) -> Region:
        """Raises ValueError for what is no mask (see `checked`). A mask of ones alone is everywhere."""
        if mask is None:
            return cls(node)
        mask = checked(mask, None, f"The mask of {node}")
        return cls(node, None if bool((mask == 1).all()) else mask, tuple(mask.shape[-2:]))

    def check(self, call: Call) -> None:
        """Raises ValueError for a mask of another shape than the run's latent."""
        if self.size is not None:
            check_aspect(self.size, call.run.size, f"The mask of {self.node}")

    def at(self, call: Call, queries: torch.Tensor, grid: Sequence[int]) -> torch.Tensor | None:
        """The mask at every row's queries, [rows, queries] in float32, on their grid: mask i mod masks for picture i.

        None, and a warning, where it cannot be placed. Only for a region with a mask.
        """
        height, width = grid
        if call.cropped or queries.shape[1] != height * width:
            call.run.warn(f"{self.node}: a mask cannot be placed on a part of the picture or on merged queries; what it belongs to sits out.")
            return None
        placed = call.run.kept.once(self.mask, (height, width, queries.device),
                                    lambda: mask_on_grid(self.mask, (height, width)).to(queries.device))
        chunks = len(call.texts)
        return call.of_pictures(placed, queries.shape[0] // chunks).repeat(chunks, 1)
