"""Token merging of Consistency Features (ZePo section 4.2, "Feature Merge")."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

AT_ONCE = 2**20  # entries of a table of tokens against tokens that is in memory at a time, per picture


def split_cells(grid: tuple[int, int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One random destination token per 2x2 cell of the grid; all other tokens are sources.

    The choice depends on (seed, height, width) alone, so layers, pictures and prompts that share a grid share it.
    Odd last rows and columns belong to no cell and are sources. Returns sorted token indices (destinations, sources).
    """
    height, width = grid
    generator = torch.Generator().manual_seed(((seed * 1_000_003 + height) * 1_000_003 + width) % 2**63)
    cells = torch.randint(4, (height // 2, width // 2), generator=generator)
    rows = 2 * torch.arange(height // 2)[:, None] + cells // 2
    columns = 2 * torch.arange(width // 2)[None, :] + cells % 2
    is_destination = torch.zeros(height * width, dtype=torch.bool)
    is_destination[(rows * width + columns).flatten()] = True
    return is_destination.nonzero()[:, 0], (~is_destination).nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class Merging:
    """Who merges into whom.

    destinations: [cells], merged: [images, r], indices of tokens; partner: [images, r], indices into `destinations`
    joined: [images, cells], how many tokens a destination stands for afterwards
    keep:   bool [images, tokens], who remains
    """

    destinations: torch.Tensor
    merged: torch.Tensor
    partner: torch.Tensor
    joined: torch.Tensor
    keep: torch.Tensor

    def mean(self, tokens: torch.Tensor) -> torch.Tensor:
        """The remaining ones of [images, tokens, channels] in order, destinations averaged with what joins them."""
        images, _, channels = tokens.shape
        values = tokens.float()
        joining = values.gather(1, self.merged[..., None].expand(-1, -1, channels))
        # Sums are products with the assignment matrix, in parts: scatter-adds have no fixed order of summation on GPUs.
        at_once = max(AT_ONCE // self.merged.shape[1], 1)
        parts = torch.arange(len(self.destinations), device=values.device).split(at_once)
        sums = [(self.partner[:, None] == some[:, None]).to(values.dtype) @ joining for some in parts]
        total = values[:, self.destinations] + torch.cat(sums, 1)
        values = values.index_copy(1, self.destinations, total / self.joined[..., None])
        return values[self.keep].view(images, -1, channels).to(tokens.dtype)

    def counts(self) -> torch.Tensor:
        """How many original tokens each of the remaining stands for, [images, tokens - r]."""
        counts = torch.ones(self.keep.shape, device=self.keep.device).index_copy(1, self.destinations, self.joined)
        return counts[self.keep].view(len(counts), -1)


def merging(features: torch.Tensor, grid: tuple[int, int], ratio: float, seed: int) -> Merging | None:
    """The `ratio` of tokens that most resemble a destination, each with the one it joins. None where nothing merges.

    features: [images, tokens, channels] with tokens = height * width of `grid`; ratio in [0, 0.75].
    At most all sources can go; a grid without cells stays as it is.
    """
    images, tokens, _ = features.shape
    destinations, sources = (index.to(features.device) for index in split_cells(grid, seed))
    amount = min(int(ratio * tokens), len(sources)) if len(destinations) else 0
    if amount == 0:
        return None
    directions = F.normalize(features.float(), dim=-1)  # safe for zero vectors
    towards = directions[:, destinations].transpose(1, 2)
    rows = max(AT_ONCE // len(destinations), 1)
    found = [(directions[:, some] @ towards).max(-1) for some in sources.split(rows)]
    best, partner = (torch.cat(parts, 1) for parts in zip(*found))
    chosen = best.argsort(dim=-1, descending=True, stable=True)[:, :amount]
    merged, partner = sources[chosen], partner.gather(1, chosen)
    ones = torch.ones(images, tokens, device=features.device)
    joined = ones[:, destinations].scatter_add(1, partner, ones[:, :amount])
    keep = torch.ones_like(ones, dtype=torch.bool).scatter(1, merged, False)
    return Merging(destinations, merged, partner, joined, keep)


def merge_tokens(features: torch.Tensor, grid: tuple[int, int], ratio: float,
                 seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Averages the `ratio` of tokens that most resemble a destination into it, see `merging`.

    Returns the remaining tokens [images, tokens - r, channels], in their original order, and how many original
    tokens each stands for [images, tokens - r].
    """
    found = merging(features, grid, ratio, seed)
    if found is None:
        return features, torch.ones(features.shape[:2], device=features.device)
    return found.mean(features), found.counts()
