"""The photographs of the microworld are lit: light, shadow and focus are where they must be."""

from dataclasses import replace

import torch
from torch.nn.functional import avg_pool2d, max_pool2d

from portrait_atelier.demo.photography import _normals, _shadow, photo
from portrait_atelier.demo.portraits import ZOOM, draw, sample_identities
from portrait_atelier.demo.styles import NAMES, paint


def portraits(light: float, count: int = 4, **changes):
    who = sample_identities(count, torch.Generator().manual_seed(3))
    who["light"] = torch.full((count,), light)
    who |= {name: torch.full((count,), value) for name, value in {"cut": 0, "hat": 0, "scene": 0, **changes}.items()}
    return who, draw(who, 128)


def taken(layers):
    return photo(layers, torch.zeros(len(layers.color), dtype=torch.long), torch.Generator().manual_seed(1))


LEFT = torch.arange(128).view(1, 1, 1, -1) < 64


def sides(picture, where):
    """Mean of the left half over that of the right, where the mask is."""
    mean = lambda side: (picture * where * side).sum() / (where * side).sum()
    return mean(LEFT) / mean(~LEFT)


def test_light_comes_from_its_side():
    """On faces; in the shadows that their parts cast on each other; and in the one of the head on the ground."""
    (_, a), (_, b) = portraits(-1.), portraits(1.)
    near = max_pool2d(a.figure, 13, 1, 6) - max_pool2d(a.figure, 3, 1, 1) > .5
    assert sides(taken(a), a.figure > .5) > 1.1 > .9 > sides(taken(b), b.figure > .5)
    assert sides(taken(a), near) > 1.25 and sides(taken(b), near) < .8
    assert sides(_shadow(a.relief, a.light, a.zoom), a.figure > .5) < .6
    assert sides(_shadow(b.relief, b.light, b.zoom), b.figure > .5) > 1.6


def test_the_ground_is_out_of_focus():
    """Hills have a sharp edge in a drawing and none in a photograph."""
    who, layers = portraits(.5, scene=2)
    ground = max_pool2d(layers.figure, 9, 1, 4)[..., 1:, :] < .01
    steepest = lambda picture: (picture.diff(dim=-2).abs() * ground).flatten(1).amax(1)
    zero = torch.zeros(len(who["light"]), dtype=torch.long)
    cartoon = paint(layers, zero + NAMES.index("cartoon"), zero, torch.Generator().manual_seed(1))
    assert (steepest(taken(layers)) < .5 * steepest(cartoon)).all()


def test_hair_has_strands():
    """Inside a head of hair the brightness goes up and down; the same head of skin is smooth."""
    _, layers = portraits(.3, cut=2, glasses=0.)
    hair = (avg_pool2d((layers.hair > 5).float(), 9, 1, 4) > .99) & (layers.line > 10)
    rough = lambda picture: ((picture - avg_pool2d(picture, 5, 1, 2)).abs() * hair).sum() / hair.sum()
    assert hair.sum() > 1000
    assert rough(taken(layers)) > 1.3 * rough(taken(replace(layers, hair=torch.zeros_like(layers.hair))))


def test_colours_stay_colours():
    _, layers = portraits(.3)
    assert torch.isfinite(taken(layers)).all() and taken(layers).amin() > -.06 and taken(layers).amax() < 1.06


def test_a_person_further_back_is_smaller():
    """Each of a batch at its own distance, and no flatter; what a face covers falls with the square."""
    who, _ = portraits(.3)
    near, far = (draw(who, 128, torch.full((4,), times * ZOOM)) for times in (1., 2.))
    face = lambda layers: (layers.figure * (torch.arange(128).view(1, 1, -1, 1) < 64)).sum((1, 2, 3))
    mixed = draw(who, 128, ZOOM * torch.tensor([1., 2., 1., 2.]))
    for field in ("color", "line", "relief"):
        both = torch.stack([getattr(near, field), getattr(far, field)])[[0, 1, 0, 1], [0, 1, 2, 3]]
        torch.testing.assert_close(getattr(mixed, field), both)
    assert (face(far) < .45 * face(near)).all()
    flat = [_normals(layers.relief, layers.zoom)[2][layers.figure > .9].mean() for layers in (near, far)]
    assert abs(flat[0] - flat[1]) < .25
