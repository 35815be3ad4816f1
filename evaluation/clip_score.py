"""CLIP score: does the picture show what the prompt says?"""

from __future__ import annotations

from . import pictures


class ClipScore:
    """Cosine of CLIP ViT-L/14's embeddings of picture and prompt, from -1 to 1; FastFace's column CLIP."""

    name, needs, better = "clip", ("generated", "prompt"), "up"

    def __init__(self, tools):
        self.clip = tools.clip

    def __call__(self, item: dict) -> float:
        return float(self.clip.image(pictures.load(item["generated"])) @ self.clip.text(item["prompt"]))
