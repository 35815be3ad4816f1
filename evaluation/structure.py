"""Structure: are things where they were? Self-similarity of DINO's keys (Tumanyan and others, 2022)."""

from __future__ import annotations

from ..stylegan import dino
from ..stylegan.losses import self_similarity, structure
from . import pictures
from .errors import EvaluationError


class DinoStructure:
    """Mean of squared differences between the self-similarities of generated and content picture, 0 for equal ones."""

    name, needs, better = "structure", ("generated", "content"), "down"

    def __init__(self, tools):
        path = tools.find(self.name, "dino_vitbase8_pretrain.pth", places=("dino", "evaluation"))
        try:
            self.dino = dino.load(path).to(tools.device)
        except Exception as error:  # a damaged file makes the safe reader raise anything
            raise EvaluationError(f"{path} cannot be read as DINO: {pictures.first_line(error)}") from None
        self.device = tools.device

    def __call__(self, item: dict) -> float:
        batches = [pictures.as_batch(pictures.load(item[side]), self.device) for side in self.needs]
        one, other = (self_similarity(self.dino(batch)) for batch in batches)
        return float(structure(one, other))
