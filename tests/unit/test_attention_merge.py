import itertools
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from portrait_atelier.attention import merge
from portrait_atelier.attention.merge import merge_tokens, split_cells

GRIDS = [(16, 16), (17, 13), (16, 9), (2, 2), (3, 2)]


def features(grid, images=2, channels=12, seed=0):
    return torch.randn(images, grid[0] * grid[1], channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", GRIDS)
def test_one_destination_per_cell(grid):
    height, width = grid
    destinations, sources = split_cells(grid, seed=3)
    cells = {(int(i) // width // 2, int(i) % width // 2) for i in destinations}
    assert cells == set(itertools.product(range(height // 2), range(width // 2)))
    assert len(destinations) == len(cells)
    assert sorted([*destinations.tolist(), *sources.tolist()]) == list(range(height * width))


def test_every_place_of_a_cell_is_chosen_and_seeds_differ():
    destinations, _ = split_cells((32, 32), seed=0)
    places = {(int(i) // 32 % 2, int(i) % 32 % 2) for i in destinations}
    assert len(places) == 4
    assert not torch.equal(destinations, split_cells((32, 32), seed=1)[0])
    assert torch.equal(destinations, split_cells((32, 32), seed=0)[0])
    split_cells((4, 4), seed=2**64 - 1)


def test_grids_of_equal_size_draw_differently():
    def places(grid):
        index = split_cells(grid, seed=0)[0]
        rows, columns = index // grid[1], index % grid[1]
        order = (rows // 2 * (grid[1] // 2) + columns // 2).argsort()
        return (rows % 2 * 2 + columns % 2)[order]

    assert not torch.equal(places((16, 64)), places((64, 16)))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
def test_counts_and_weighted_mean(grid, ratio):
    x = features(grid)
    merged, counts = merge_tokens(x, grid, ratio, seed=0)
    tokens = x.shape[1]
    sources = tokens - (grid[0] // 2) * (grid[1] // 2)
    assert merged.shape[1] == counts.shape[1] == tokens - min(int(ratio * tokens), sources)
    assert (counts.sum(1) == tokens).all() and (counts >= 1).all()
    torch.testing.assert_close((merged * counts[..., None]).sum(1), x.sum(1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("grid", [(1, 8), (8, 1), (1, 1)])
def test_lines_stay_unmerged(grid):
    x = features(grid)
    merged, counts = merge_tokens(x, grid, 0.5, seed=0)
    assert merged is x and (counts == 1).all()


def test_rows_are_independent_and_repeatable():
    x = features((8, 8), images=3)
    merged, counts = merge_tokens(x, (8, 8), 0.5, seed=4)
    again = merge_tokens(x, (8, 8), 0.5, seed=4)
    assert torch.equal(again[0], merged) and torch.equal(again[1], counts)
    for i in range(3):
        alone = merge_tokens(x[i:i + 1], (8, 8), 0.5, seed=4)
        torch.testing.assert_close(alone[0][0], merged[i], rtol=1e-6, atol=1e-6)
        assert torch.equal(alone[1][0], counts[i])


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    merge_tokens(features((8, 8)), (8, 8), 0.5, seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_input_is_left_alone():
    x = features((8, 8))
    before = x.clone()
    merge_tokens(x, (8, 8), 0.5, seed=4)
    assert torch.equal(x, before)


def brute_force(x, grid, ratio, seed):
    """The same by loops over one picture: [(mean, count)] by original position of the token that stays."""
    destinations, sources = (index.tolist() for index in split_cells(grid, seed))
    cosine = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    best = {s: max(destinations, key=lambda d: cosine[s, d].item()) for s in sources}
    ranked = sorted(sources, key=lambda s: -cosine[s, best[s]].item())
    gone = ranked[:min(int(ratio * len(x)), len(sources))]
    result = []
    for i in range(len(x)):
        if i not in gone:
            members = [i] + [s for s in gone if best[s] == i]
            result.append((x[members].mean(0), len(members)))
    return result


@pytest.mark.parametrize("grid, ratio", [((6, 6), 0.5), ((5, 7), 0.3), ((4, 4), 0.75)])
def test_against_loops(grid, ratio):
    x = features(grid, images=1, seed=9)
    merged, counts = merge_tokens(x, grid, ratio, seed=1)
    expected = brute_force(x[0].double(), grid, ratio, seed=1)
    assert counts[0].tolist() == [count for _, count in expected]
    torch.testing.assert_close(merged[0].double(), torch.stack([mean for mean, _ in expected]), rtol=1e-5, atol=1e-6)


def test_zero_vectors_are_safe():
    x = features((4, 4))
    x[:, ::3] = 0
    merged, _ = merge_tokens(x, (4, 4), 0.5, seed=0)
    assert torch.isfinite(merged).all()


def test_equal_tokens_merge_first_and_nothing_is_lost():
    grid = (4, 4)
    destinations, sources = split_cells(grid, 0)
    x = torch.eye(16)[None].clone()
    x[0, sources[5]] = x[0, destinations[2]] * 3  # same direction, other length: similarity is the cosine's
    merged, counts = merge_tokens(x, grid, 1 / 16, seed=0)
    assert sorted(counts[0].tolist()) == [1] * 14 + [2]
    assert torch.equal(merged[0][counts[0] == 2][0], x[0, destinations[2]] * 2)


def test_half_precision_is_kept():
    x = features((8, 8)).to(torch.bfloat16)
    merged, _ = merge_tokens(x, (8, 8), 0.5, seed=0)
    assert merged.dtype == torch.bfloat16


class Peak(TorchDispatchMode):
    """Bytes of the tensors made inside, the most that lived at once."""

    def __init__(self):
        super().__init__()
        self.live = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                self.most = max(self.most, self.live)
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return out

    def free(self, key, size):
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_memory_does_not_grow_with_pairs_of_tokens(monkeypatch, ratio):
    monkeypatch.setattr(merge, "AT_ONCE", 2**14)
    x = features((64, 64), images=1).repeat(1, 1, 8)
    with Peak() as peak:
        merge_tokens(x, (64, 64), ratio, seed=0)
    assert peak.most < 8 * x.nbytes, peak.most / x.nbytes


# Mutants of the merge: each breaks the comparison with the loops.

def dot_product_instead_of_cosine(patch):
    patch.setattr(merge.F, "normalize", lambda x, dim: x)


def least_similar_first(patch):
    argsort = torch.Tensor.argsort
    patch.setattr(torch.Tensor, "argsort", lambda x, dim, descending, stable: argsort(x, dim=dim, descending=False, stable=stable))


def destination_left_out_of_its_mean(patch):
    scatter = torch.Tensor.scatter_add
    patch.setattr(torch.Tensor, "scatter_add", lambda x, dim, index, ones: scatter(x, dim, index, ones) - 1)


@pytest.mark.parametrize("mutant", [dot_product_instead_of_cosine, least_similar_first, destination_left_out_of_its_mean])
def test_mutants_fail(monkeypatch, mutant):
    grid, ratio = (6, 6), 0.3
    x = features(grid, images=1, seed=9) * torch.linspace(0.1, 3, 36)[None, :, None]
    expected = brute_force(x[0].double(), grid, ratio, seed=1)
    mutant(monkeypatch)
    merged, _ = merge_tokens(x, grid, ratio, seed=1)
    assert (merged[0].double() - torch.stack([mean for mean, _ in expected])).abs().max() > 1e-2
