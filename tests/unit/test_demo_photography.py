"""The photographs of the microworld are lit: light, shadow and focus are where they must be."""

import torch

from portrait_atelier.demo.photography import PAINTERS, ZOOM, photo
from portrait_atelier.demo.portraits import draw, sample_identities
from portrait_atelier.demo.styles import NAMES, STYLES, paint


def portraits(light: float, count: int = 4, **changes):
    who = sample_identities(count, torch.Generator().manual_seed(3))
    who["light"] = torch.full((count,), light)
    who |= {name: torch.full((count,), value) for name, value in {"cut": 0, "hat": 0, "scene": 0, **changes}.items()}
    return who, draw(who, 128, ZOOM)


def taken(layers):
    return photo(layers, torch.zeros(len(layers.color), dtype=torch.long), torch.Generator().manual_seed(1))


def test_light_comes_from_its_side():
    """On faces and, by the shadow that the head casts, on the ground behind it."""
    left, right = (taken(portraits(light)[1]) for light in (-1., 1.))
    layers = portraits(1.)[1]
    half = torch.arange(128).view(1, 1, 1, -1) < 64
    for mask in (layers.figure > .5, layers.figure < .5):
        share = lambda picture, side: (picture * mask * side).sum() / (mask * side).sum()
        assert share(left, half) / share(left, ~half) > 1.1 * share(right, half) / share(right, ~half)


def test_the_ground_is_out_of_focus():
    """Hills have a sharp edge in a drawing and none in a photograph."""
    who, layers = portraits(.5, scene=2)
    ground = torch.nn.functional.max_pool2d(layers.figure, 9, 1, 4)[..., 1:, :] < .01
    steepest = lambda picture: (picture.diff(dim=-2).abs() * ground).flatten(1).amax(1)
    zero = torch.zeros(len(who["light"]), dtype=torch.long)
    cartoon = paint(layers, zero + NAMES.index("cartoon"), zero, torch.Generator().manual_seed(1))
    assert (steepest(taken(layers)) < .5 * steepest(cartoon)).all()


def test_hair_has_strands():
    """Finer steps than the same person's skin; the drawing's hair is flat."""
    who, layers = portraits(.3, cut=2, glasses=0.)
    hair = (layers.hair > 5) & (torch.nn.functional.avg_pool2d(layers.hair, 5, 1, 2) > 8)
    skin = (layers.figure > .5) & (torch.nn.functional.max_pool2d(layers.hair, 9, 1, 4) < 5) & (layers.line > 8)
    rough = lambda where: ((picture - torch.nn.functional.avg_pool2d(picture, 5, 1, 2)).abs() * where).sum() / where.sum()
    picture = taken(layers)
    assert hair.sum() > 1000 and rough(hair) > 1.5 * rough(skin)


def test_the_other_styles_are_the_same_and_the_photo_is_not():
    who, layers = portraits(.3)
    zero = torch.zeros(len(who["light"]), dtype=torch.long)
    draw_with = lambda name, painters: paint(layers, zero + NAMES.index(name), zero, torch.Generator().manual_seed(1), painters)
    assert len(PAINTERS) == len(STYLES)
    assert torch.equal(draw_with("ink", PAINTERS), draw_with("ink", STYLES))
    assert (draw_with("photo", PAINTERS) - draw_with("photo", STYLES)).abs().mean() > .05
    assert torch.isfinite(taken(layers)).all() and taken(layers).amin() > -.06 and taken(layers).amax() < 1.06
