"""Decoupled guidance against the paper's equations, written out number by number in float64."""

import math

import pytest
import torch

from portrait_atelier.guidance import decoupled

U, T, I, TI = decoupled.EMPTY, decoupled.TEXT, decoupled.IDENTITY, decoupled.FULL


def literal_guided(name, e, alpha, beta):
    """e: {(c_text, c_id): epsilon} as lists of numbers; the equations as printed."""
    guided = []
    for uncond, text, ident, both in zip(e[False, False], e[True, False], e[False, True], e[True, True]):
        if name == "DCG_1":  # (16)
            guided.append(uncond + alpha * (text - uncond) + beta * (both - text))
        elif name == "DCG_2":  # (5), (17)
            guided.append(uncond + alpha * (ident - uncond) + beta * (both - ident))
        else:  # (18)
            guided.append(uncond + alpha * (text - uncond) + beta * (ident - uncond))
    return guided


def literal_std(values):
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def literal_rescaled(guided, second, third, phi):
    """(6) for one sample: sigma_i and sigma_ti of the parts, sigma_dcg of the guided one."""
    ratio = (literal_std(second) + literal_std(third)) / (2 * literal_std(guided))
    return [phi * ratio * value + (1 - phi) * value for value in guided]


def predictions(batch=3, seed=0):
    """Four rows that differ in mean and in deviation, and from sample to sample."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 4, 5, 6)
    size = torch.arange(1, batch + 1).view(-1, 1, 1, 1)
    return {row: (torch.randn(shape, generator=generator, dtype=torch.float64) * (0.5 + number) + 0.3 * number) * size
            for number, row in enumerate((U, T, I, TI))}


def expected(name, e, alpha, beta, phi):
    named = {(row.text, row.identity): tensor for row, tensor in e.items()}
    second, third = {"DCG_1": (T, TI), "DCG_2": (I, TI), "DCG_3": (T, I)}[name]
    out = []
    for sample in range(len(e[U])):
        numbers = {key: tensor[sample].flatten().tolist() for key, tensor in named.items()}
        guided = literal_guided(name, numbers, alpha, beta)
        if phi is not None:
            guided = literal_rescaled(guided, numbers[second.text, second.identity], numbers[third.text, third.identity], phi)
        out.append(torch.tensor(guided, dtype=torch.float64).view_as(e[U][sample]))
    return torch.stack(out)


def ours(name, e, alpha, beta, phi, maths=decoupled):
    rows = [e[row] for row in decoupled.FORMULATIONS[name]]
    guided = maths.combine(rows, maths.coefficients(name, alpha, beta))
    return guided if phi is None else maths.rescale(guided, rows[1], rows[2], phi)


CASES = [(name, alpha, beta, phi) for name in ("DCG_1", "DCG_2", "DCG_3")
         for alpha, beta in ((1.5, 3.0), (1.0, 1.0), (2.0, 0.0), (0.0, 1.7), (-0.5, 4.0), (3.0, 3.0)) for phi in (None, 0.75, 0.2, 1.0)]


@pytest.mark.parametrize("name, alpha, beta, phi", CASES)
def test_the_equations(name, alpha, beta, phi):
    e = predictions()
    wanted = expected(name, e, alpha, beta, phi)
    assert (ours(name, e, alpha, beta, phi) - wanted).abs().max() < 1e-12 * wanted.abs().max()
    in_floats = ours(name, {row: x.float() for row, x in e.items()}, alpha, beta, phi)
    assert (in_floats - wanted).abs().max() < 1e-6 * wanted.abs().max()


class Wrong:
    """Plausible mistakes in place of the right functions."""

    def __init__(self, **wrong):
        self.__dict__.update({name: getattr(decoupled, name) for name in ("combine", "coefficients", "rescale")}, **wrong)


def over_the_batch(guided, second, third, phi):
    return guided * (phi * (second.std() + third.std()) / (2 * guided.std()) + 1 - phi)


MUTANTS = {
    "alpha and beta exchanged": Wrong(coefficients=lambda name, alpha, beta: decoupled.coefficients(name, beta, alpha)),
    "cond and uncond exchanged": Wrong(combine=lambda rows, weights: decoupled.combine([rows[2], rows[1], rows[0]], weights)),
    "middle and cond exchanged": Wrong(combine=lambda rows, weights: decoupled.combine([rows[0], rows[2], rows[1]], weights)),
    "phi's complement": Wrong(rescale=lambda guided, second, third, phi: decoupled.rescale(guided, second, third, 1 - phi)),
    "deviation over the batch": Wrong(rescale=over_the_batch),
    "one part only": Wrong(rescale=lambda guided, second, third, phi: decoupled.rescale(guided, third, third, phi)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mistakes_are_noticed(mutant):
    worst = 0
    for name, alpha, beta, phi in CASES:
        e = predictions()
        wanted = expected(name, e, alpha, beta, phi)
        worst = max(worst, float((ours(name, e, alpha, beta, phi, MUTANTS[mutant]) - wanted).abs().max() / wanted.abs().max()))
    assert worst > 5e-3


def test_rescaling_is_about_epsilon():
    """On predictions of the clean picture, x - sigma epsilon, the same equation gives something else."""
    e, x, sigma = predictions(), torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 15, 14.6
    wanted = expected("DCG_2", e, 1.5, 3.0, 0.75)
    scaled = {row: sigma * epsilon for row, epsilon in e.items()}
    assert (ours("DCG_2", scaled, 1.5, 3.0, 0.75) - sigma * wanted).abs().max() < 1e-10
    clean = {row: x - sigma * epsilon for row, epsilon in e.items()}
    assert ((x - ours("DCG_2", clean, 1.5, 3.0, 0.75)) / sigma - wanted).abs().max() > 0.01 * wanted.abs().max()
    assert ((x - ours("DCG_2", clean, 1.5, 3.0, None)) / sigma - expected("DCG_2", e, 1.5, 3.0, None)).abs().max() < 1e-10, "affine"


@pytest.mark.parametrize("name", decoupled.FORMULATIONS)
def test_coefficients_add_up_to_one(name):
    for alpha, beta in ((1.5, 3.0), (0.0, 0.0), (2.5, -1.0)):
        assert sum(decoupled.coefficients(name, alpha, beta)) == 1


@pytest.mark.parametrize("name, alpha, beta, row", [
    ("DCG_2", 1, 1, TI), ("DCG_1", 1, 1, TI), ("DCG_2", 1, 0, I), ("DCG_1", 1, 0, T), ("DCG_2", 0, 0, U), ("DCG_3", 1, 0, T), ("DCG_3", 0, 1, I),
])
def test_a_lone_row_is_returned_itself(name, alpha, beta, row):
    e = {key: x.float() for key, x in predictions().items()}
    weights = decoupled.coefficients(name, alpha, beta)
    rows = [e[key] if weight else None for key, weight in zip(decoupled.FORMULATIONS[name], weights)]
    assert decoupled.combine(rows, weights) is e[row]
    assert [decoupled.FORMULATIONS[name][index] for index in decoupled.rows_needed(weights, False)] == [row]


@pytest.mark.parametrize("name", ["DCG_1", "DCG_2"])
def test_equal_scales_are_ordinary_guidance(name):
    e = predictions()
    for w in (0.5, 2.0, 7.5):
        weights = decoupled.coefficients(name, w, w)
        assert decoupled.rows_needed(weights, False) == {0, 2}
        guided = decoupled.combine([e[U], None, e[TI]], weights)
        assert (guided - (e[U] + w * (e[TI] - e[U]))).abs().max() < 1e-12


def test_rows_needed():
    needed = [decoupled.rows_needed(decoupled.coefficients("DCG_2", a, b), False) for a, b in zip((1, 1.5, 1.5, 1), (1, 3, 3, 1))]
    assert [len(rows) for rows in needed] == [1, 3, 3, 1]
    needed = [decoupled.rows_needed(decoupled.coefficients("DCG_2", a, b), True) for a, b in zip((1, 1.5, 1.5, 1), (1, 3, 3, 1))]
    assert [len(rows) for rows in needed] == [2, 3, 3, 2]
    assert decoupled.rows_needed(decoupled.coefficients("DCG_3", 1, 1), False) == {0, 1, 2}


def test_samples_are_independent():
    e = predictions(batch=4)
    together = ours("DCG_2", e, 1.5, 3.0, 0.75)
    for i in range(4):
        alone = ours("DCG_2", {row: x[i:i + 1] for row, x in e.items()}, 1.5, 3.0, 0.75)[0]
        assert (alone - together[i]).abs().max() < 1e-12 * together[i].abs().max()


def test_a_flat_sample_is_left_alone():
    e = {row: torch.cat([x, torch.zeros_like(x[:1])]) for row, x in predictions().items()}
    out = ours("DCG_2", e, 1.5, 3.0, 0.75)
    assert torch.isfinite(out).all() and (out[-1] == 0).all()


def test_half_precision_and_video():
    e = predictions()
    wanted = expected("DCG_2", e, 1.5, 3.0, 0.75)
    for dtype in (torch.float16, torch.bfloat16):
        out = ours("DCG_2", {row: x.to(dtype) for row, x in e.items()}, 1.5, 3.0, 0.75)
        assert out.dtype == dtype and (out.double() - wanted).abs().max() < 0.02 * wanted.abs().max()
    frames = {row: x.view(3, 4, 5, 2, 3) for row, x in e.items()}
    assert (ours("DCG_2", frames, 1.5, 3.0, 0.75).flatten() - wanted.flatten()).abs().max() < 1e-10
