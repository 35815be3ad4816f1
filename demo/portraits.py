"""Procedural portraits: who is drawn (identity), apart from how (``styles.py``).

An identity is a dict of [n] tensors; drawing it gives the layers that every style paints from. The same identity
can therefore be rendered in any style, which gives the microworld a ground truth that photographs never have.
Coordinates run from -1 (left, top) to 1 (right, bottom).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SKINS = {"pale": (.99, .87, .78), "fair": (.96, .76, .60), "tan": (.83, .60, .42), "brown": (.58, .38, .26), "dark": (.36, .23, .16)}
HAIR_COLORS = {"black": (.12, .10, .12), "brown": (.40, .24, .14), "blond": (.93, .78, .40), "red": (.80, .30, .12),
               "grey": (.72, .72, .76), "blue": (.22, .40, .85), "pink": (.95, .50, .68)}
HAIR_CUTS = ("bald", "short", "long", "curly", "bun", "spiky")
HATS = ("none", "beanie", "bowler")
SCENES = ("plain", "sun", "hills")
BACKGROUNDS = {"white": (.93, .93, .91), "blue": (.45, .68, .92), "green": (.50, .78, .52), "red": (.90, .42, .38),
               "yellow": (.97, .85, .45), "purple": (.62, .47, .80), "orange": (.97, .64, .32), "teal": (.30, .66, .66)}
SHIRTS = {"white": (.92, .92, .94), "red": (.82, .22, .22), "blue": (.22, .34, .74), "green": (.22, .58, .32),
          "black": (.17, .17, .20), "yellow": (.96, .77, .22), "purple": (.50, .28, .62)}
EYES = {"brown": (.34, .20, .11), "blue": (.24, .48, .80), "green": (.26, .56, .34), "dark": (.13, .11, .12)}

# name -> (low, high); what a readout may be asked to recover
RANGES = {
    "width": (.40, .52), "height": (.50, .60), "jaw": (-.22, .22), "x": (-.08, .08), "y": (-.02, .08), "tilt": (-.13, .13),
    "eye_size": (.065, .105), "eye_gap": (.17, .23), "eye_y": (-.10, .0), "gaze": (-.3, .3), "brow_tilt": (-.05, .05), "brow_y": (.13, .18),
    "nose": (.13, .21), "mouth_width": (.11, .20), "mouth_curve": (-.07, .09), "mouth_y": (.27, .33),
    "hair_length": (.35, .62), "fringe": (-.25, .25), "light": (-1., 1.),
}
CHOICES = {"skin": SKINS, "hair": HAIR_COLORS, "cut": HAIR_CUTS, "hat": HATS, "scene": SCENES, "background": BACKGROUNDS,
           "shirt": SHIRTS, "eyes": EYES}
FLAGS = {"open_mouth": .25, "glasses": .25, "beard": .2, "moustache": .12, "earrings": .2, "blush": .4}


ZOOM = .83   # half the picture's width, in the units of RANGES
FURTHEST = 2.2   # times as far stand the furthest who are called "far"; the nearest of them, 1.5 times


def sample_identities(n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Draw n identities: [n] float tensors for RANGES and FLAGS (0 or 1), [n] long tensors for CHOICES."""
    uniform = lambda: torch.rand(n, generator=generator)
    who = {name: low + (high - low) * uniform() for name, (low, high) in RANGES.items()}
    who |= {name: torch.randint(len(options), (n,), generator=generator) for name, options in CHOICES.items()}
    who |= {name: (uniform() < chance).float() for name, chance in FLAGS.items()}
    who["hat"] = torch.where(uniform() < .7, torch.zeros_like(who["hat"]), who["hat"])   # most heads are bare
    who["tint"] = torch.randn(n, 3, generator=generator) * .03
    return who


def select(who: dict[str, torch.Tensor], index) -> dict[str, torch.Tensor]:
    """The identities at ``index`` (anything a tensor can be indexed with)."""
    return {name: value[index] for name, value in who.items()}


@dataclass
class Layers:
    """What styles paint from. B portraits of S x S pixels."""
    color: torch.Tensor    # [B, 3, S, S] flat albedo, 0 to 1
    shade: torch.Tensor    # [B, 1, S, S] light, about -1 (dark) to 1
    line: torch.Tensor     # [B, 1, S, S] distance to the nearest visible contour, in pixels of a 256-pixel picture
    figure: torch.Tensor   # [B, 1, S, S] 1 where the person is
    light: torch.Tensor    # [B, 1, 1, 1] direction of the light, -1 left to 1 right
    relief: torch.Tensor   # [B, 1, S, S] height of the rounded shapes, in half widths of a picture
    hair: torch.Tensor     # [B, 1, S, S] direction of hair in radians, plus 10 where there is any
    zoom: torch.Tensor     # [B, 1, 1, 1] half the picture's width, in the units of RANGES


def _ellipse(u, v, cx, cy, a, b):
    return (torch.sqrt(((u - cx) / a) ** 2 + ((v - cy) / b) ** 2 + 1e-8) - 1) * (a * b) ** .5


def _segment(u, v, ax, ay, bx, by):
    dx, dy = bx - ax, by - ay
    h = (((u - ax) * dx + (v - ay) * dy) / (dx * dx + dy * dy + 1e-8)).clamp(0, 1)
    return torch.sqrt((u - ax - dx * h) ** 2 + (v - ay - dy * h) ** 2 + 1e-8)


class _Canvas:
    """Paints signed-distance shapes over each other and remembers the contours that stay visible."""

    def __init__(self, count: int, size: int, device, zoom: torch.Tensor):
        self.zoom, self.pixel = zoom, 2 * zoom / size
        self.color = torch.zeros(count, 3, size, size, device=device)
        self.shade = torch.zeros(count, size, size, device=device)
        self.line = torch.full((count, size, size), 99., device=device)
        self.figure = torch.zeros(count, size, size, device=device)
        self.relief = torch.zeros(count, size, size, device=device)
        self.hair = torch.zeros(count, size, size, device=device)

    def put(self, distance, color, shade=None, on=None, contour=0., person=True, round=.06, hair=None):
        """Paint where distance < 0. ``contour``: pixels by which the outline is thinner; None draws no outline.

        ``round``: how far from its border a shape curves, 0 for paint on what is below; ``hair``: the direction of its hair.
        """
        cover = (.5 - distance / self.pixel).clamp(0, 1)
        present = None if on is None else on.bool()
        if on is not None:
            cover = cover * on
        self.color += (color - self.color) * cover[:, None]
        self.shade += ((0. if shade is None else shade) - self.shade) * cover
        if person:
            self.figure = torch.maximum(self.figure, cover)
        if round:
            rise = round * (1 - (1 + distance.clamp(-round, 0) / round) ** 2 + 1e-6).sqrt() if person else 0 * distance
            self.relief += (rise - self.relief) * cover
        self.hair += ((0. if hair is None else hair + 10) - self.hair) * (cover > .5)
        inside = distance < 0
        if contour is None:
            fresh = torch.where(inside, 99., self.line)
        else:
            near = distance.abs() * (128 / self.zoom) + contour
            fresh = torch.where(inside, near, torch.minimum(self.line, near))
        self.line = fresh if present is None else torch.where(present, fresh, self.line)


def draw(who: dict[str, torch.Tensor], size: int = 256, zoom: float | torch.Tensor = ZOOM) -> Layers:
    """Draw identities ([B] tensors, see ``sample_identities``) as Layers of size x size pixels.

    ``zoom``, one or [B]: half the picture's width; the larger, the smaller the person.
    """
    count, device = len(who["width"]), who["width"].device
    p = {name: value.view(count, 1, 1) for name, value in who.items() if value.ndim == 1}
    palette = lambda name: torch.tensor(list(CHOICES[name].values()), device=device)[who[name]].view(count, 3, 1, 1)
    tint = who["tint"].view(count, 3, 1, 1)
    skin, hair = (palette("skin") + tint * .6).clamp(0, 1), (palette("hair") + tint).clamp(0, 1)
    ground, shirt, iris = (palette("background") + tint.flip(1) * 1.5).clamp(0, 1), palette("shirt"), palette("eyes")
    cut = lambda *names: sum((p["cut"] == HAIR_CUTS.index(n)).float() for n in names)
    hat = lambda name: (p["hat"] == HATS.index(name)).float()
    scene = lambda name: (p["scene"] == SCENES.index(name)).float()

    axis = (torch.arange(size, device=device) + .5) / size * 2 - 1
    Y, X = torch.meshgrid(axis, axis, indexing="ij")
    zoom = torch.as_tensor(zoom, device=device).expand(count).view(count, 1, 1)
    X, Y = (X * zoom).expand(count, size, size), (Y * zoom - .03).expand(count, size, size)
    cos, sin = torch.cos(p["tilt"]), torch.sin(p["tilt"])
    x, y = X - p["x"], Y - p["y"]
    u, v = cos * x + sin * y, cos * y - sin * x                      # the head's own axes
    a, b, light = p["width"], p["height"], p["light"]
    canvas = _Canvas(count, size, device, zoom)
    put, one, dark = canvas.put, torch.ones_like(a), torch.full((1, 3, 1, 1), .09, device=device)

    # background
    put(X * 0 - 1, ground, shade=-.3 * Y + .2 * X * light, contour=None, person=False)
    put(_ellipse(X, Y, .45 * torch.sign(light), -.45 * one, .38 * one, .38 * one), (ground * .5 + .5), on=scene("sun"), contour=3., person=False)
    put(.30 + .12 * torch.sin(X * 2.6 + p["tilt"] * 20) - Y, ground * .72, shade=-.1 + 0 * X, on=scene("hills"), contour=3., person=False)

    # body
    round_hair = cut("long", "curly")
    curl = torch.sin(torch.atan2(v + .12, u) * 13) * .035 * cut("curly")
    fall = torch.maximum(u.abs() - a * 1.2, torch.maximum(-v - .12, v - p["hair_length"]))
    mane = torch.where(cut("long") > 0, torch.minimum(_ellipse(u, v, 0, -.10, a * 1.2, b * 1.12), fall - .04),
                       _ellipse(u, v, 0, -.10, a * 1.34, b * 1.16) + curl)
    flow = torch.atan2(v + .9, u)                                       # hair falls from the crown
    put(mane, hair, shade=-.45 + light * u * .4, on=round_hair, round=.3, hair=flow)
    put(_ellipse(u, v, 0, -b - .12, .19 * one, .17 * one), hair, shade=light * u * 1.5, on=cut("bun") * (1 - (p["hat"] > 0).float()),
        round=.17, hair=v * 0)
    chest = X - p["x"] * .6
    trunk = torch.maximum(chest.abs() - .80, 1.16 - Y)                # seen of people who stand further back
    put(torch.minimum(_ellipse(chest, Y, 0, 1.16, .80 * one, .44 * one), trunk), shirt, shade=light * X * .7 - .15, round=.3)
    put(torch.maximum((u.abs() - a * .40), torch.maximum(.2 - v, v - .84 + u * u * 2)), skin, shade=-.5 + .3 * light * u,
        round=.15)
    for side in (-1, 1):
        put(_ellipse(u, v, side * a, .02, .075 * one, .12 * one), skin, shade=light * side * .5 + 0 * u)
        put(_ellipse(u, v, side * (a + .02), .17, .032 * one, .032 * one), torch.tensor([.98, .82, .3], device=device).view(1, 3, 1, 1), on=p["earrings"], contour=1.)

    # head
    jaw = a * (1 + p["jaw"] * v.clamp(-.6, .6))
    face = (torch.sqrt((u / jaw) ** 2 + (v / b) ** 2 + 1e-8) - 1) * torch.minimum(a, b)
    bulge = light * u / jaw * .7 - v * .25 - ((u / jaw) ** 2 + (v / b) ** 2) * .45 + .28
    put(face, skin, shade=bulge, round=.42)
    mound = lambda cx, cy, size: torch.exp(-((u - cx) ** 2 + (v - cy) ** 2) / size ** 2) * (face < 0)
    nose_tip = p["eye_y"] + .04 + p["nose"]
    canvas.relief += .05 * torch.exp(-(_segment(u, v, 0 * a, nose_tip - p["nose"] * .8, 0 * a, nose_tip) / .05) ** 2)
    canvas.relief += .03 * mound(0, nose_tip - .01, .06) + .03 * mound(0, p["mouth_y"], .14) - .02 * mound(0, p["mouth_y"] + .12, .1)
    for side in (-1, 1):
        canvas.relief += .03 * mound(side * a * .55, .14, .14) - .045 * mound(side * p["eye_gap"], p["eye_y"], .12)
    for side in (-1, 1):
        put(_ellipse(u, v, side * a * .58, .16, .085 * one, .06 * one), (skin * .82 + torch.tensor([.17, .03, .05], device=device).view(1, 3, 1, 1)), shade=bulge, on=p["blush"], contour=None,
            round=0)
    below = torch.maximum(face, .20 - v + .3 * u.abs())
    mouth_hole = .05 - _ellipse(u, v, 0, p["mouth_y"], p["mouth_width"], .07 * one)
    put(torch.maximum(below, mouth_hole), hair * .9, shade=bulge * .6, on=p["beard"], contour=2., round=.3, hair=torch.atan2(v + .3, u))

    # hair on the forehead
    cap = (torch.sqrt((u / (a * 1.13)) ** 2 + ((v + .06) / (b * 1.1)) ** 2 + 1e-8) - 1) * torch.minimum(a, b)
    spikes = (torch.abs(torch.remainder(torch.atan2(v + .1, u) * 4.5, 1) - .5) - .25) * .28 * cut("spiky") * (v < -.1)
    hairline = v + .33 + p["fringe"] * u - .4 * u * u
    wave = torch.sin(u * 30) * .02 * cut("curly")
    put(torch.maximum(cap - .02 * cut("spiky") + spikes + wave, hairline + wave), hair, shade=.15 + light * u * .7 - (v + .5) * .5,
        on=1 - cut("bald"), round=.3, hair=flow)

    # hats
    dome = torch.maximum(_ellipse(u, v, 0, -.24 * one, a * 1.2, b * .92), v + .30)
    put(dome, shirt * .9 + .05, shade=light * u * .8, on=hat("beanie"), round=.3)
    put(torch.maximum(torch.maximum((v + .34).abs() - .075, u.abs() - a * 1.2), -2 - u), shirt * .75 + .2, shade=light * u * .8, on=hat("beanie"))
    put(_ellipse(u, v, 0, -b - .24, .09 * one, .09 * one), shirt * .6 + .38, shade=light * u, on=hat("beanie"))
    put(torch.maximum(_ellipse(u, v, 0, -.36 * one, a * 1.02, b * .86), v + .36), hair * .3 + .12, shade=light * u * .8, on=hat("bowler"), round=.3)
    put(torch.maximum(torch.maximum(-.54 - v, v + .38), u.abs() - a * 1.0), shirt, shade=light * u * .8, on=hat("bowler"), contour=1.)
    put(_ellipse(u, v, 0, -.37 * one, a * 1.5, .062 * one), hair * .3 + .12, shade=light * u * .5 + .1, on=hat("bowler"))

    # eyes, brows, nose, mouth
    for side in (-1, 1):
        cx, cy, r = side * p["eye_gap"], p["eye_y"], p["eye_size"]
        gaze = cx + p["gaze"] * r
        put(_ellipse(u, v, cx, cy, r * 1.25, r), torch.full_like(dark, .97), contour=.5)
        put(_ellipse(u, v, gaze, cy, r * .68, r * .72), iris, contour=2., round=0)
        put(_ellipse(u, v, gaze, cy, r * .36, r * .38), iris * .15, contour=None, round=0)
        put(_ellipse(u, v, gaze + .025, cy - .025, r * .2, r * .2), torch.ones_like(dark), contour=None, round=0)
        bow = cy - p["brow_y"] + side * p["brow_tilt"] * ((u - cx) / .1)
        put(torch.maximum((v - bow + (u - cx) ** 2 * 1.5).abs() - .022, (u - cx).abs() - .10), hair * .5, contour=2.5, round=.02, hair=0 * u)
        put(_ellipse(u, v, cx, cy + .01, r * 1.75, r * 1.6).abs() - .014, dark, on=p["glasses"], contour=None, round=.02)
    bridge = p["eye_gap"] - p["eye_size"] * 1.7
    put(_segment(u, v, -bridge, p["eye_y"], bridge, p["eye_y"]) - .013, dark, on=p["glasses"], contour=None)
    tip, turn = p["eye_y"] + .04 + p["nose"], .045 * torch.sign(light)
    put(_segment(u, v, 0 * turn, tip - p["nose"] * .7, turn, tip) - .013, skin * .70, contour=2.5, round=0)
    put(_segment(u, v, turn, tip, -turn, tip + .012) - .012, skin * .66, contour=2.5, round=0)
    lip = (skin * torch.tensor([.82, .42, .42], device=device).view(1, 3, 1, 1) + torch.tensor([.16, .02, .04], device=device).view(1, 3, 1, 1)).clamp(0, 1)
    smile = v - p["mouth_y"] + p["mouth_curve"] / p["mouth_width"] ** 2 * (u * u - p["mouth_width"] ** 2 * .4)
    put(torch.maximum(smile.abs() - .024, u.abs() - p["mouth_width"]), lip, on=1 - p["open_mouth"], contour=1.5, round=0)
    put(_ellipse(u, v, 0, p["mouth_y"], p["mouth_width"] * .75, .078 * one), lip * .4, on=p["open_mouth"], contour=0., round=0)
    put(_ellipse(u, v, 0, p["mouth_y"] + .045, p["mouth_width"] * .4, .03 * one), torch.tensor([.9, .45, .45], device=device).view(1, 3, 1, 1), on=p["open_mouth"], contour=None,
        round=0)
    whisker = torch.maximum((v - p["mouth_y"] + .065 - u * u * 1.2).abs() - .03 + u.abs() * .1, u.abs() - .17)
    put(whisker, hair * .8, on=p["moustache"], contour=2., round=.03, hair=0 * u)
    return Layers(canvas.color, canvas.shade[:, None], canvas.line[:, None], canvas.figure[:, None], light[..., None],
                  canvas.relief[:, None], canvas.hair[:, None], zoom[..., None])


def caption_words(who: dict[str, torch.Tensor], index: int) -> list[str]:
    """Everything true of one portrait that a caption may say, in the vocabulary of ``text.py``."""
    name = lambda key: list(CHOICES[key])[int(who[key][index])]
    words = [f"{name('skin')} skin", f"{name('background')} background", f"{name('shirt')} shirt", f"{name('eyes')} eyes"]
    words.append("bald" if name("cut") == "bald" else f"{name('cut')} hair")
    if name("cut") != "bald":
        words.append(f"{name('hair')} hair")
    words += [name(key) for key in ("hat", "scene") if name(key) not in ("none", "plain")]
    words += [flag.replace("_", " ") for flag in FLAGS if who[flag][index] > 0]
    if who["open_mouth"][index] == 0 and abs(float(who["mouth_curve"][index]) - .005) > .03:
        words.append("smile" if who["mouth_curve"][index] > 0 else "frown")
    return words
