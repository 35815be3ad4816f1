"""Token merging of a whole bank, layer by layer, with Cancel."""

from dataclasses import replace

import comfy.model_management

from ..attention.features import ConsistencyFeatures
from ..attention.merge import merge_tokens


def merge_features(bank: ConsistencyFeatures, ratio: float, seed: int, weighted: bool) -> ConsistencyFeatures:
    """A bank with about (1 - ratio) of the tokens; the same object for ratio 0. Raises ValueError for a merged bank."""
    if bank.counts is not None:
        raise ValueError("These features are merged already. Connect Consistency Feature Extract straight to Token Merge "
                         "and set the ratio there.")
    if ratio == 0:
        return bank
    device = comfy.model_management.get_torch_device()
    features, counts = {}, {}
    for slot, layers in bank.features.items():
        features[slot], counts[slot] = {}, {}
        for layer, tokens in layers.items():
            comfy.model_management.throw_exception_if_processing_interrupted()
            merged, count = merge_tokens(tokens.to(device), bank.grids[layer], ratio, seed)
            features[slot][layer], counts[slot][layer] = merged.to(tokens.device), count.to(tokens.device)
    return replace(bank, features=features, counts=counts, weighted=weighted)
