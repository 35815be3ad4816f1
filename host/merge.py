"""Token merging of a whole bank, layer by layer, with Cancel."""

from dataclasses import replace

import comfy.model_management
import torch

from ..attention.features import ConsistencyFeatures
from ..attention.merge import merging
from .kit.transformers import grid_places


def merge_features(bank: ConsistencyFeatures, ratio: float, seed: int, weighted: bool) -> ConsistencyFeatures:
    """A bank with about (1 - ratio) of the tokens; the same object for ratio 0. Raises ValueError for a merged bank."""
    if bank.counts is not None:
        raise ValueError("These features are merged already. Connect Consistency Feature Extract straight to Token Merge "
                         "and set the ratio there.")
    if ratio == 0:
        return bank
    device = comfy.model_management.get_torch_device()
    features, counts, places = {}, {}, {}
    for slot, layers in bank.features.items():
        features[slot], counts[slot], places[slot] = {}, {}, {}
        for layer, tokens in layers.items():
            comfy.model_management.throw_exception_if_processing_interrupted()
            where = grid_places(bank.grids[layer]).expand(len(tokens), -1, -1)
            found = merging(tokens.to(device), bank.grids[layer], ratio, seed)
            if found is None:
                kept = tokens, torch.ones(tokens.shape[:2]), where
            else:
                kept = found.mean(tokens.to(device)), found.counts(), found.mean(where.to(device))
            features[slot][layer], counts[slot][layer], places[slot][layer] = (x.to(tokens.device) for x in kept)
    return replace(bank, features=features, counts=counts, weighted=weighted, places=places)
