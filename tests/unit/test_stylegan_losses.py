"""MMFS's losses against loops in float64 that read as the paper does, and the properties that they must have."""

import math

import pytest
import torch

from portrait_atelier.stylegan import losses


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def close(a, b):
    a, b = float(torch.as_tensor(a).detach()), float(b)
    assert abs(a - b) < 1e-12, (a, b)


def absolute(a, b):
    a, b = a.flatten().tolist(), b.flatten().tolist()
    return sum(abs(x - y) for x, y in zip(a, b)) / len(a)


def test_reconstruction():
    fake, target = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    mine, theirs = [random(2, 5, 4, 4, seed=2), random(2, 6, 2, 2, seed=3)], [
        random(2, 5, 4, 4, seed=4),
        random(2, 6, 2, 2, seed=5),
    ]
    literal = absolute(fake, target) + 4 * sum(absolute(a, b) for a, b in zip(mine, theirs))
    close(losses.reconstruction(fake, target, mine, theirs), literal)
    assert losses.reconstruction(fake, fake, mine, mine) == 0
    with pytest.raises(ValueError):  # a tap that one of both lacks is no smaller loss
        losses.reconstruction(fake, target, mine, theirs[:1])


def test_the_adversarial_losses():
    real, fake = random(3, 1), random(3, 1, seed=1)
    soft = lambda x: math.log(1 + math.exp(x))
    close(losses.fool(fake), sum(soft(-x) for x in fake.flatten().tolist()) / 3)
    close(
        losses.tell_apart(real, fake),
        sum(soft(x) + soft(-y) for x, y in zip(fake.flatten().tolist(), real.flatten().tolist())) / 6,
    )


def test_steepness_is_the_squared_gradient_of_every_picture_alone():
    x, weight = random(2, 3, 4, 4).requires_grad_(), random(3 * 16, seed=1)
    logits = (x.flatten(1) ** 3 @ weight)[:, None]
    slopes = 3 * x.detach().flatten(1) ** 2 * weight
    close(losses.steepness(x, logits), sum(float((slope**2).sum()) for slope in slopes) / 2)


def test_structure():
    fake, photo = random(2, 5, 8), random(2, 5, 8, seed=1)
    square = []
    for b in range(2):
        for i in range(5):
            for j in range(5):
                square.append(
                    (
                        cosine(fake[b, i].tolist(), fake[b, j].tolist())
                        - cosine(photo[b, i].tolist(), photo[b, j].tolist())
                    )
                    ** 2
                )
    s, t = losses.self_similarity(fake), losses.self_similarity(photo)
    close(losses.structure(s, t), sum(square) / len(square))
    assert losses.structure(s, s) == 0
    # a mean: two pictures that are as wrong as one are no more wrong
    close(losses.structure(s[:1].repeat(4, 1, 1), t[:1].repeat(4, 1, 1)), losses.structure(s[:1], t[:1]))
    # lengths of keys say nothing
    assert torch.allclose(losses.self_similarity(fake * torch.rand(2, 5, 1).double().add(0.5)), s)


def test_direction():
    fake, photo, target, anchor = random(3, 6), random(3, 6, seed=1), random(6, seed=2), random(6, seed=3)
    literal = sum(1 - cosine((f - p).tolist(), (target - anchor).tolist()) for f, p in zip(fake, photo)) / 3
    close(losses.direction(fake, photo, target, anchor), literal)
    close(losses.direction(photo + 2.5 * (target - anchor), photo, target, anchor), 0)
    close(losses.direction(photo - (target - anchor), photo, target, anchor), 2)


def test_projection():
    style, tokens = random(4, 9), random(2, 4, 9, seed=1)
    basis = losses.span(style)
    assert basis.shape == (9, 4) and torch.allclose(basis.T @ basis, torch.eye(4).double())
    total = 0
    for token in tokens.flatten(0, 1):
        unit = token / token.norm()
        projected = sum(float(basis[:, k] @ unit) * basis[:, k] for k in range(4))
        total += float((projected - unit).abs().sum())
    close(losses.projection(tokens, basis), total / (2 * 4 * 9))
    inside = torch.einsum("bnk,kc->bnc", random(2, 7, 4, seed=2), style)
    assert losses.projection(inside, basis) < 1e-14
    close(losses.projection(tokens * 3, basis), losses.projection(tokens, basis))  # unit tokens


@pytest.mark.parametrize("part", [1, 2, 4, 8])
def test_parts_of_a_batch_add_up(part):
    """Every loss but the discriminator's own, which sees its batch, is a mean over pictures."""
    keys, truth = random(8, 5, 6).requires_grad_(), losses.self_similarity(random(8, 5, 6, seed=1))
    photo, target, basis = random(8, 6, seed=2), random(6, seed=3), losses.span(random(3, 6, seed=4))

    def loss(rows):
        s = losses.structure(losses.self_similarity(keys[rows]), truth[rows])
        return (
            s
            + losses.direction(keys[rows, 0], photo[rows], target, photo.mean(0))
            + losses.projection(keys[rows], basis)
        )

    (whole,) = torch.autograd.grad(loss(slice(0, 8)), keys)
    parts = sum(torch.autograd.grad(loss(slice(k, k + part)) * part / 8, keys)[0] for k in range(0, 8, part))
    assert (whole - parts).abs().max() < 1e-14
