"""The bank of Consistency Features that one picture (or a batch of pictures) yields."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .blocks import LayerId

COND, UNCOND = 0, 1


@dataclass(frozen=True, eq=False)
class ConsistencyFeatures:
    """Self-attention inputs f of ZePo's equation (7), recorded once at a fixed timestep. Never written to.

    features: per slot (0 positive prompt, 1 negative prompt) and layer, [images, tokens, channels]; of transformers not
              the inputs, but keys, without their place, and values: [images, tokens, channels of both]
    counts:   None before merging; afterwards [images, tokens], how many original tokens each one stands for
    places:   None before merging; afterwards [images, tokens, 2], their mean (row, column) on the grid
    grids:    (height, width) of the token grid that each layer had during extraction
    weighted: whether attention weighs merged tokens by their counts
    """

    features: Mapping[int, Mapping[LayerId, torch.Tensor]]
    grids: Mapping[LayerId, tuple[int, int]]
    timestep: int
    seed: int
    family: str
    weights_id: object
    counts: Mapping[int, Mapping[LayerId, torch.Tensor]] | None = None
    weighted: bool = False
    places: Mapping[int, Mapping[LayerId, torch.Tensor]] | None = None

    @property
    def layers(self) -> list[LayerId]:
        return list(self.grids)

    @property
    def images(self) -> int:
        return next(iter(self.features[COND].values())).shape[0]

    def channels(self, layer: LayerId) -> int:
        return self.features[COND][layer].shape[-1]
