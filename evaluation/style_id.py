"""StyleID: is it the same person, also where the picture is a drawing? (Yun and others, 2026)"""

from __future__ import annotations

from . import pictures
from .clip_model import Clip


class StyleId:
    """Cosine of StyleID's embeddings of generated picture and identity photo, from -1 to 1.

    Its network is a CLIP that was trained further on people's judgements. It wants one face, in the middle.
    """

    name, needs, better = "style_id", ("generated", "identity"), "up"

    def __init__(self, tools):
        self.clip = Clip(tools.find(self.name, "styleid", places=("evaluation", "clip_vision")), tools.device)

    def __call__(self, item: dict) -> float:
        return float(self.clip.image(pictures.load(item["generated"]))
                     @ self.clip.image(pictures.load(item["identity"])))
