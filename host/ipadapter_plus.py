"""Branches that IPAdapter_plus put on a model, recomputed where their attention map is to be transformed.

Its callbacks hand out the branch's output only. From their arguments the map can be made again: those of the plain kind
are, all others run as they are.
"""

import math

import torch
import torch.nn.functional as F

from ..attention.features import UNCOND


def recomputable(callback, kwargs: dict, extra: dict) -> bool:
    """Whether the arguments describe weight * mask * Attention(Q, K', V') and nothing else."""
    key = f"{kwargs.get('module_key')}_to_k_ip"
    layers = getattr(kwargs.get("ipadapter"), "ip_layers", None)
    return (key in getattr(layers, "to_kvs", {}) and kwargs.get("cond") is not None and kwargs.get("uncond") is not None
            and kwargs["cond"].shape == kwargs["uncond"].shape
            and isinstance(kwargs.get("weight", 1.0), (int, float)) and kwargs.get("weight_type", "linear") == "linear"
            and kwargs.get("embeds_scaling", "V only") == "V only" and not kwargs.get("unfold_batch", False)
            and kwargs.get("cond_alt") is None and extra.get("ad_params") is None)


def first_tokens(kwargs: dict) -> range:
    """The first token of every person among the adapter's tokens, which come as [photos, tokens, width]."""
    total = kwargs["cond"].shape[:2].numel()
    each = getattr(kwargs["ipadapter"], "clip_extra_context_tokens", total)
    return range(0, total, each if total % each == 0 else total)


def branch(q: torch.Tensor, kwargs: dict, extra: dict, attention) -> torch.Tensor:
    """weight * mask * attention(q, K', V') for arguments that are `recomputable`: [rows, queries, channels].

    A prompt in place 1 gets the unconditional tokens, any other the person's. Those of several photos ("concat") are keys of
    one attention. The projections are called, never read.
    """
    adapter, name = kwargs["ipadapter"], kwargs["module_key"]
    if hasattr(adapter, "get_multigpu_clone"):
        adapter = adapter.get_multigpu_clone(q.device)
    slots = extra["cond_or_uncond"]
    rows = q.shape[0] // len(slots)

    def project(kind: str) -> torch.Tensor:
        layer = adapter.ip_layers.to_kvs[f"{name}_to_{kind}_ip"]
        tokens = {False: layer(kwargs["cond"]), True: layer(kwargs["uncond"])}
        return torch.cat([tokens[slot == UNCOND].flatten(0, 1).expand(rows, -1, -1) for slot in slots])

    out = attention(q, project("k"), project("v")) * kwargs.get("weight", 1.0)
    mask = kwargs.get("mask")
    if mask is not None:
        placed = mask_on_queries(mask, extra["original_shape"][-2:], q.shape[1])
        placed = placed[[min(i, len(placed) - 1) for i in range(rows)]]
        out = out * placed.to(out).repeat(len(slots), 1)[..., None]
    return out.to(q.dtype)


def mask_on_queries(mask: torch.Tensor, picture: tuple[int, int], queries: int) -> torch.Tensor:
    """[masks, height, width] -> [masks, queries], on the grid that pack derives from the latent's size and the number of queries.

    Its grid can differ from the true one by a row; the mask is then cut or padded evenly at both ends.
    """
    height = int(picture[0] / math.sqrt(picture[0] * picture[1] / queries))
    height += queries % height != 0
    placed = F.interpolate(mask[:, None], size=(height, queries // height), mode="bilinear").flatten(1)
    missing = queries - placed.shape[1]
    if missing > 0:
        return F.pad(placed, (missing // 2, missing - missing // 2))
    return placed[:, -missing // 2:][:, :queries] if missing else placed
