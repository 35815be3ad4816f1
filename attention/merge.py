"""Token merging of Consistency Features (ZePo section 4.2, "Feature Merge")."""

import torch
import torch.nn.functional as F


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
    best, partner = (directions[:, sources] @ directions[:, destinations].transpose(1, 2)).max(-1)
    chosen = best.argsort(dim=-1, descending=True, stable=True)[:, :amount]
    merged = sources[chosen]
    # A product with the assignment matrix, since scatter-adds have no fixed order of summation on GPUs.
    assignment = F.one_hot(partner.gather(1, chosen), len(destinations)).to(values.dtype).transpose(1, 2)
    joined = 1 + assignment.sum(-1)
    total = values[:, destinations] + assignment @ values.gather(1, merged[..., None].expand(-1, -1, channels))
    values = values.index_copy(1, destinations, total / joined[..., None])
    counts = counts.index_copy(1, destinations, joined)
    keep = torch.ones_like(counts, dtype=torch.bool).scatter(1, merged, False)
    return values[keep].view(images, -1, channels).to(features.dtype), counts[keep].view(images, -1)
