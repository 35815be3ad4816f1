"""The training benchmark counts what it says."""

import pytest

from portrait_atelier.benchmarks import style_training as bench


@pytest.mark.parametrize("model, targets, modules, millions", [("SD1.5", "qkv", 96, 2.39), ("SD2.1", "qkv", 96, 2.52), ("SD2.1", "qkv+out", 128, 3.32)])
def test_the_sizes_of_the_paper(model, targets, modules, millions):
    found = bench.memory(model, 64, targets)
    assert found["modules"] == modules and round(found["parameters"] / 1e6, 2) == millions


def test_kept_memory_grows_with_the_picture_and_shrinks_with_checkpointing():
    small, large, less = bench.memory("SD1.5", 128), bench.memory("SD1.5", 256), bench.memory("SD1.5", 256, checkpointing=True)
    assert 3 < large["kept"] / small["kept"] < 4.5 and less["kept"] < large["kept"] / 5
    assert large["weights"] == small["weights"] == 2 * 859_520_964


def test_flops_of_a_step():
    """The backward pass goes through every layer once more, and with checkpointing the blocks run forward again; base weights need no gradients."""
    plain, again = bench.flops("SD1.5", 256), bench.flops("SD1.5", 256, checkpointing=True)
    assert plain["forward"] == again["forward"] == pytest.approx(0.1801e12, rel=0.01)  # as `bench zepo` counts, attention included
    assert 1.6 < plain["step"] / plain["forward"] < 2.2
    assert 0.7 < (again["step"] - plain["step"]) / plain["forward"] < 1.1
