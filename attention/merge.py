"""Token merging of Consistency Features (ZePo section 4.2, "Feature Merge")."""

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


def merge_tokens(features: torch.Tensor, grid: tuple[int, int], ratio: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Averages the `ratio` of tokens that most resemble a destination into it.

    features: [images, tokens, channels] with tokens = height * width of `grid`; ratio in [0, 0.75].
    Returns the remaining tokens [images, tokens - r, channels], in their original order, and how many original
    tokens each stands for [images, tokens - r]. At most all sources can go; a grid without cells stays as it is.
    """
    images, tokens, channels = features.shape
    destinations, sources = (index.to(features.device) for index in split_cells(grid, seed))
    amount = min(int(ratio * tokens), len(sources)) if len(destinations) else 0
    counts = torch.ones(images, tokens, device=features.device)
    if amount == 0:
        return features, counts

    values = features.float()
    directions = F.normalize(values, dim=-1)  # safe for zero vectors
    towards = directions[:, destinations].transpose(1, 2)
    rows = max(AT_ONCE // len(destinations), 1)
    found = [(directions[:, some] @ towards).max(-1) for some in sources.split(rows)]
    best, partner = (torch.cat(parts, 1) for parts in zip(*found))
    chosen = best.argsort(dim=-1, descending=True, stable=True)[:, :amount]
    merged = sources[chosen]
    partner, joining = partner.gather(1, chosen), values.gather(1, merged[..., None].expand(-1, -1, channels))
    joined = counts[:, destinations].scatter_add(1, partner, counts[:, :amount])
    # Sums are products with the assignment matrix, in parts: scatter-adds have no fixed order of summation on GPUs.
    sums = [(partner[:, None] == some[:, None]).to(values.dtype) @ joining
            for some in torch.arange(len(destinations), device=values.device).split(max(AT_ONCE // amount, 1))]
    total = values[:, destinations] + torch.cat(sums, 1)
    values = values.index_copy(1, destinations, total / joined[..., None])
    counts = counts.index_copy(1, destinations, joined)
    keep = torch.ones_like(counts, dtype=torch.bool).scatter(1, merged, False)
    return values[keep].view(images, -1, channels).to(features.dtype), counts[keep].view(images, -1)
