"""Draws ``demo/pictures`` again, the portraits that ship with the pack: ``python3 headless/pack.py --cpu demo.making.shipped``."""

from __future__ import annotations

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...host.pictures import MARK, SHIPPED, pixels_hash
from ..portraits import CHOICES, sample_identities
from ..styles import NAMES, render

SIZE = 256
# Name of the file -> style, its palette, seed of the person, and what is not left to that seed.
PEOPLE = {
    "content": ("photo", 2, 42, {"cut": "long", "hair": "red", "hat": "none", "skin": "pale", "eyes": "blue", "background": "green", "shirt": "blue",
                                   "scene": "plain", "glasses": 0, "beard": 0, "moustache": 0, "open_mouth": 0, "earrings": 1, "blush": 1, "mouth_curve": .07, "brow_tilt": 0, "light": -.7}),
    "content-2": ("photo", 0, 41, {"cut": "curly", "hair": "brown", "hat": "none", "skin": "fair", "eyes": "green", "background": "teal", "shirt": "red",
                                 "scene": "plain", "glasses": 1, "beard": 0, "moustache": 0, "open_mouth": 0, "mouth_curve": .08, "brow_tilt": 0, "light": .8}),
    "style": ("popart", 0, 43, {"hat": "bowler", "scene": "plain", "beard": 0, "mouth_curve": .06}),
    "style-cartoon": ("cartoon", 0, 44, {"hat": "beanie", "cut": "short", "glasses": 1}),
    "style-ink": ("ink", 3, 45, {"cut": "long", "hat": "none", "hair": "black", "earrings": 1, "beard": 0, "background": "white"}),
    "style-neon": ("neon", 0, 46, {"cut": "spiky", "hat": "none", "hair": "pink", "beard": 0, "scene": "plain", "mouth_curve": .06}),
    "style-popart": ("popart", 1, 49, {"cut": "curly", "hat": "none", "glasses": 1, "beard": 0, "mouth_curve": .06}),
    "style-sepia": ("sepia", 2, 47, {"cut": "short", "hat": "none", "scene": "sun"}),
    "style-watercolor": ("watercolor", 0, 48, {"cut": "curly", "hair": "red", "hat": "none", "beard": 0, "background": "blue"}),
}
FACE = (.5, .47, .38, .44)       # of what is painted over in content-painted: centre and half axes, in shares of the picture
SCENE = {"seed": 703, "zoom": 4.2, "side": 1024, "rows": (250, 825), "columns": (90, 857)}


def picture(style: str, palette: int, seed: int, traits: dict, size: int = SIZE, **zoom) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    who = sample_identities(1, generator)
    for name, value in traits.items():
        who[name][:] = list(CHOICES[name]).index(value) if isinstance(value, str) else value
    drawn = render(who, torch.tensor([NAMES.index(style)]), torch.tensor([palette]), generator, size, **zoom)
    return Image.fromarray((drawn[0].movedim(0, -1) * 255).round().byte().numpy())


def painted(content: Image.Image) -> Image.Image:
    """The face made transparent, as ComfyUI's mask editor paints it."""
    axis = (torch.arange(SIZE) + .5) / SIZE
    x, y, wide, high = FACE
    inside = 1 - (((axis[None] - x) / wide) ** 2 + ((axis[:, None] - y) / high) ** 2).sqrt()
    alpha = (.5 - inside * SIZE * min(wide, high) / 4).clamp(0, 1)
    return Image.merge("RGBA", (*content.split(), Image.fromarray((alpha * 255).round().byte().numpy())))


def main() -> None:
    drawn = {name: picture(*recipe) for name, recipe in PEOPLE.items()}
    drawn["content-painted"] = painted(drawn["content"])
    (top, bottom), (left, right) = SCENE["rows"], SCENE["columns"]
    scene = picture("photo", 0, SCENE["seed"], {"scene": "hills"}, SCENE["side"], zoom=SCENE["zoom"])
    drawn["scene"] = scene.crop((left, top, right + 1, bottom + 1))
    for name, image in drawn.items():
        mark = PngInfo()
        mark.add_text(MARK, pixels_hash(image))
        image.save(SHIPPED / f"{name}.png", pnginfo=mark)


if __name__ == "__main__":
    main()
