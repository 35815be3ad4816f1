"""Prompts, CONDITIONING, that our own model calls evaluate: that they fit the model, and what they may carry."""

import comfy.model_base
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ..log import log
from .sites import blocks, family

# A conditioning entry with one of these speaks of a part of the picture, of the schedule, or of another model;
PARTIAL = ("area", "mask", "start_percent", "end_percent", "control", "gligen", "default")
# hooks change weights and split a packed call.
UNSUPPORTED = (*PARTIAL, "hooks")
# Numbers that SDXL's networks read beside the pooled text: sizes and crops, 256 channels each.
SIZES = {comfy.model_base.SDXL: 6, comfy.model_base.SDXLRefiner: 5}


def text_width(model) -> int | None:
    """Channels of the text that a ModelPatcher's UNet reads; None for other networks."""
    unet = getattr(model.model, "diffusion_model", None)
    found = list(blocks(unet).values()) if isinstance(unet, UNetModel) else []
    return found[0].attn2.to_k.in_features if found else None


def pooled_width(model) -> int | None:
    """Channels of the pooled text that an SDXL UNet reads beside; None for models without."""
    sizes = next((count for kind, count in SIZES.items() if isinstance(model.model, kind)), None)
    return None if sizes is None else model.model.adm_channels - 256 * sizes


def check_prompt(model, conditioning: list, where: str) -> None:
    """Raises ValueError that begins with `where` for no prompt, NaN, and the prompt of another model's text encoder."""
    if not conditioning:
        raise ValueError(f"{where} holds no prompt. Connect a CLIP Text Encode.")
    check_finite(conditioning, where)
    width, pooled_size = text_width(model), pooled_width(model)
    for text, options in conditioning:
        if torch.is_tensor(text) and width is not None and text.shape[-1] != width:
            raise ValueError(f"{where} was written by another text encoder: it is {text.shape[-1]} wide, but this "
                             f"{family(model)} model reads {width}. Encode it with the CLIP of this model's "
                             "checkpoint.")
        if pooled_size is not None and options.get("unclip_conditioning") is None:
            pooled = options.get("pooled_output")
            if pooled is None or pooled.shape[-1] != pooled_size:
                found = "none" if pooled is None else f"one {pooled.shape[-1]} wide"
                raise ValueError(f"{where} was written by another text encoder: this {family(model)} model reads a "
                                 f"pooled text {pooled_size} wide, and there is {found}. Encode it with the CLIP of this "
                                 "model's checkpoint.")


def check_finite(conditioning: list, where: str) -> None:
    """Raises ValueError that begins with `where` for NaN and infinity; [(text, options), ...]."""
    for text, options in conditioning:
        for tensor in (text, options.get("pooled_output")):
            if torch.is_tensor(tensor) and not torch.isfinite(tensor).all():
                raise ValueError(f"{where} holds NaN or infinite values: the picture would be empty. Check the text "
                                 "encoder, and LoRAs on it.")


def one_prompt(model, conditioning: list, name: str, node: str, why: str = "cannot act on one row of a packed call") -> list:
    """`conditioning` if it is one prompt for the whole picture at all times. Raises ValueError with what it has.

    `why` says why nothing else may come with it: "'cond' of Node carries 'area', which {why}."
    """
    if len(conditioning) != 1:
        raise ValueError(f"'{name}' of {node} holds {len(conditioning)} prompts. Connect one CLIP Text Encode, without "
                         "Combine.")
    for key in UNSUPPORTED:
        if conditioning[0][1].get(key) is not None:
            raise ValueError(f"'{name}' of {node} carries '{key}', which {why}. Connect the prompt from before that node"
                             + ("; masks go to FastSAM Mask Blend." if key in ("area", "mask") else "."))
    check_prompt(model, conditioning, f"'{name}' of {node}")
    return conditioning


def main_prompt(conditioning: list, name: str, node: str) -> list:
    """The first entry that speaks of the whole picture at all times; conditioning hooks stay."""
    whole = [entry for entry in conditioning if not any(entry[1].get(key) is not None for key in PARTIAL)]
    if whole:
        return whole[:1]
    log.warning("%s: every entry of '%s' has an area, mask, time range, ControlNet or GLIGEN; the first one is used without it.",
                node, name)
    embedding, options = conditioning[0]
    return [[embedding, {key: value for key, value in options.items() if key not in PARTIAL}]]
