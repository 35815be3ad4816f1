"""Values over steps (FastFace design: K values over N steps)."""

import pytest
import torch

from portrait_atelier.guidance.schedule import parse_values, step_count, step_of, value_at

ALPHA, BETA = (1.0, 1.5, 1.5, 1.0), (1.0, 3.0, 3.0, 1.0)


def literal(values, step, steps):
    """The rule in the design's words: ends take the ends, inner step j takes index 1 + (j - 1)(K - 2) // (N - 2)."""
    if len(values) == 1 or steps == 1 or step == 0:
        return values[0]
    if step == steps - 1:
        return values[-1]
    return values[1 + (step - 1) * (len(values) - 2) // (steps - 2)]


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("steps", range(1, 13))
def test_the_rule(count, steps):
    values = tuple(range(10, 10 + count))
    found = [value_at(values, step, steps) for step in range(steps)]
    assert found == [literal(values, step, steps) for step in range(steps)]
    assert found[0] == values[0] and (steps == 1 or found[-1] == values[-1])
    assert found == sorted(found), "in order"


@pytest.mark.parametrize("steps, alpha, beta", [
    (1, [1], [1]), (2, [1, 1], [1, 1]), (3, [1, 1.5, 1], [1, 3, 1]), (4, list(ALPHA), list(BETA)),
    (8, [1] + 6 * [1.5] + [1], [1] + 6 * [3] + [1]),
])
def test_the_papers_lists(steps, alpha, beta):
    assert [value_at(ALPHA, step, steps) for step in range(steps)] == alpha
    assert [value_at(BETA, step, steps) for step in range(steps)] == beta


def test_as_many_values_as_steps_are_taken_as_they_are():
    for count in range(1, 13):
        values = tuple(torch.rand(count, generator=torch.Generator().manual_seed(count)).tolist())
        assert tuple(value_at(values, step, count) for step in range(count)) == values


SIGMAS = torch.tensor([14.6, 4.1, 1.6, 0.7, 0.0])


@pytest.mark.parametrize("sigma, step", [
    (14.6, 0), (9.0, 0), (4.1, 1), (2.5, 1), (1.6, 2), (0.7, 3), (0.3, 3), (0.0, 3),
    (14.6 * 1.2, 0), (4.1 * (1 + 1e-6), 1), (4.1 * (1 - 1e-6), 1), (1.6 * (1 + 5e-5), 2),
])
def test_the_step_is_the_interval_that_holds_sigma(sigma, step):
    assert step_of(sigma, SIGMAS) == step


def test_every_step_of_many_schedules():
    for steps in range(1, 13):
        sigmas = torch.cat([torch.logspace(1.2, -1.5, steps), torch.zeros(1)])
        assert [step_of(float(sigma), sigmas) for sigma in sigmas[:-1]] == list(range(steps))
        between = (sigmas[:-1] * sigmas[1:].clamp_min(1e-3)).sqrt()  # where dpm_2 asks
        assert [step_of(float(sigma), sigmas) for sigma in between] == list(range(steps))


def test_rising_sigmas():
    sigmas = SIGMAS.flip(0)
    assert [step_of(float(sigma), sigmas) for sigma in sigmas] == [0, 1, 2, 3, 3]
    assert step_of(0.3, sigmas) == 0 and step_of(9.0, sigmas) == 3


def test_without_a_schedule_it_is_the_first_value():
    assert step_of(3.0, None) == 0 and step_count(None) == 1
    assert value_at(BETA, step_of(3.0, None), step_count(None)) == 1
    assert step_of(3.0, SIGMAS[:1]) == 0 and step_count(SIGMAS[:1]) == 1


@pytest.mark.parametrize("text, values", [
    ("1, 1.5, 1.5, 1", ALPHA), ("1 3 3 1", BETA), (" 2 ", (2.0,)), ("1,3，3 ,1", BETA), ("1\n-2", (1.0, -2.0)), ("1e-1", (0.1,)),
])
def test_reading_a_widget(text, values):
    assert parse_values(text, "alpha", "Decoupled CFG") == values


@pytest.mark.parametrize("text, word", [("1, x, 2", "'x'"), ("1,,2", "''"), ("1, 2,", "''"), ("nan", "'nan'"), ("1, inf", "'inf'"), ("1;2", "'1;2'")])
def test_what_is_not_a_number_is_named(text, word):
    with pytest.raises(ValueError) as error:
        parse_values(text, "beta", "Decoupled CFG")
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in ("'beta'", "Decoupled CFG", repr(text), word, "1, 1.5, 1.5, 1"))


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_widget(text):
    with pytest.raises(ValueError, match="'alpha' of Decoupled CFG is empty"):
        parse_values(text, "alpha", "Decoupled CFG")
