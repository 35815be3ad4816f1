"""The trainer's pure part: adapters, AdamW, draws, what stops it."""

import pytest
import torch

from portrait_atelier.training import style_lora as maths

ALPHAS = torch.linspace(0.999, 0.005, 1000, dtype=torch.float64)


class Toy:
    """A network of one Linear layer on latents [1, 3, 4, 4]."""

    def __init__(self):
        self.linear = torch.nn.Linear(3, 3).double().requires_grad_(False)
        self.picture = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(5)).double()

    def predict(self, z_t, t):
        return self.linear(z_t.movedim(1, -1)).movedim(-1, 1) * (1 + t / 1000)

    def train(self, steps=6, seed=0, **options):
        adapters = maths.Adapters({"one": self.linear}, 2, torch.Generator().manual_seed(seed)).double()
        options = {"predict": self.predict, "pictures": [[self.picture]], "alphas": ALPHAS, "prediction": maths.EPSILON, "learning_rate": 0.01, "window": 1,
                   "on_step": lambda *_: None, **options}
        with adapters.attached():
            maths.train(adapters=adapters, steps=steps, generator=torch.Generator().manual_seed(seed + 1), **options)
        return adapters


@pytest.fixture
def toy():
    return Toy()


def literal(toy, steps=6, rate=0.01, rank=2):
    """AdamW with betas 0.9, 0.999, weight decay 0.01, epsilon 1e-8 on || epsilon - W' z_t ||^2, W' = W + up down."""
    generator = torch.Generator().manual_seed(0)
    pair = [(torch.randn(rank, 3, generator=generator) / rank).double(), torch.zeros(3, rank, dtype=torch.float64)]
    moments = [[torch.zeros_like(part), torch.zeros_like(part)] for part in pair]
    generator.manual_seed(1)
    for step in range(1, steps + 1):
        torch.randint(1, (), generator=generator), torch.randint(1, (), generator=generator)
        t = int(torch.randint(1000, (), generator=generator))
        epsilon = torch.randn(1, 3, 4, 4, generator=generator).double()
        z = ALPHAS[t].sqrt() * toy.picture + (1 - ALPHAS[t]).sqrt() * epsilon
        down, up = (part.clone().requires_grad_() for part in pair)
        out = (torch.einsum("oc,bchw->bohw", toy.linear.weight + up @ down, z) + toy.linear.bias[:, None, None]) * (1 + t / 1000)
        grads = torch.autograd.grad(((out - epsilon) ** 2).mean(), [down, up])
        for place, g in enumerate(grads):
            m, v = moments[place]
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            pair[place] = pair[place] * (1 - rate * 0.01) - rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return pair


def error(toy):
    (found,), wanted = toy.train().pairs.values(), literal(toy)
    return max(float((a.detach() - b).abs().max()) for a, b in zip(found, wanted))


def test_the_optimizer(toy):
    assert error(toy) < 1e-7  # the first Down is drawn in float32


@pytest.mark.parametrize("name, value", [("BETAS", (0.9, 0.99)), ("BETAS", (0.5, 0.999)), ("WEIGHT_DECAY", 0.0), ("WEIGHT_DECAY", 0.1)])
def test_mutants_of_the_optimizer(toy, monkeypatch, name, value):
    monkeypatch.setattr(maths, name, value)
    assert error(toy) > 1e-5


def test_adapters_start_at_nothing_and_leave_nothing(toy):
    x = torch.randn(5, 3, dtype=torch.float64)
    plain = toy.linear(x)
    adapters = maths.Adapters({"one": toy.linear}, 500, torch.Generator().manual_seed(0)).double()
    (down, up), = adapters.pairs.values()
    assert float(down.std()) == pytest.approx(1 / 500, rel=0.1) and not up.any()
    with torch.no_grad():
        up += 1
    with adapters.attached():
        with torch.no_grad():
            assert torch.allclose(toy.linear(x), plain + (x @ down.T) @ up.T)
    assert torch.equal(toy.linear(x), plain) and not toy.linear._forward_hooks


def test_draws_cover_times_pictures_and_windows():
    pictures = [[torch.full((1, 1, 8, 12), 10.0 * number + variant) for variant in range(2)] for number in range(3)]
    generator = torch.Generator().manual_seed(0)
    draws = [maths.random_draw(pictures, 1000, 0.75, generator) for _ in range(4000)]
    times = torch.tensor([float(draw.t) for draw in draws])
    assert times.min() < 5 and times.max() > 994 and abs(times.mean() - 499.5) < 15 and abs(times.std() - 288.7) < 10
    assert {float(draw.z0.mean()) for draw in draws} == {0.0, 1.0, 10.0, 11.0, 20.0, 21.0}
    assert {tuple(draw.z0.shape) for draw in draws} == {(1, 1, 6, 9)}
    noise = torch.cat([draw.epsilon.flatten() for draw in draws])
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    ramp = torch.arange(8.0)[:, None] * 100 + torch.arange(12.0)
    corners = {float(maths.random_draw([[ramp[None, None]]], 1000, 0.75, generator).z0[0, 0, 0, 0]) for _ in range(300)}
    assert corners == {100.0 * top + left for top in range(3) for left in range(4)}


def test_denoised_undoes_both_predictions(toy):
    draw = maths.probes([[toy.picture]], 1000, 3)[4]
    z_t, alpha = maths.noised(draw, ALPHAS), ALPHAS[draw.t]
    for prediction in (maths.EPSILON, maths.V):
        assert torch.allclose(maths.denoised(z_t, maths.target(draw, ALPHAS, prediction), alpha, prediction), toy.picture)


def test_probes_are_fixed_and_spread(toy):
    first, again = maths.probes([[toy.picture]], 1000, 3), maths.probes([[toy.picture]], 1000, 3)
    assert [draw.t for draw in first] == [62, 187, 312, 437, 562, 687, 812, 937]
    assert all(torch.equal(a.epsilon, b.epsilon) for a, b in zip(first, again))
    assert not torch.equal(first[0].epsilon, first[1].epsilon)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_does_harm(toy, bad):
    steps, good = [], toy.train(steps=2)

    def predict(z_t, t):
        return toy.predict(z_t, t) * (bad if len(steps) == 2 else 1)

    kept = maths.Adapters({"one": toy.linear}, 2, torch.Generator().manual_seed(0)).double()
    with kept.attached(), pytest.raises(ValueError, match="step 3 of 6"):
        maths.train(predict, kept, [[toy.picture]], ALPHAS, prediction=maths.EPSILON, steps=6, learning_rate=0.01, window=1,
                    generator=torch.Generator().manual_seed(1), on_step=lambda *event: steps.append(event))
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), good.parameters()))


def test_a_gradient_that_is_not_finite_stops_too(toy):
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    with pytest.raises(ValueError, match="step 1 of 6"):
        toy.train(predict=lambda z_t, t: Overflow.apply(toy.predict(z_t, t)))
