"""The attention numbers of IP-Adapter files, on ComfyUI's module tree.

The files count the UNet's attentions in the order in which diffusers lists its attention processors: encoder, decoder, then
the middle block; within a layer self-attention (even) before cross-attention (odd). A run visits the middle before the decoder.
"""

from __future__ import annotations

import comfy.lora
import comfy.utils
import torch

from ..attention.blocks import LayerId
from .adapters import misfit
from .kit.sites import attention_layers

KINDS = {"to_q_lora": "to_q", "to_k_lora": "to_k", "to_v_lora": "to_v", "to_out_lora": "to_out.0"}


def cross_attention_numbers(model) -> dict[int, LayerId]:
    """{n: the layer whose attn2 has number n in the file}; its attn1 has n - 1. SD1.5: 1 to 31, SDXL: 1 to 139."""
    layers = list(attention_layers(model))
    ordered = [layer for part in ("input", "output", "middle") for layer in layers if layer[0] == part]
    return {2 * place + 1: layer for place, layer in enumerate(ordered)}


def attention_paths(model) -> dict[int, str]:
    """{n: name of attention n in the model}, such as "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2"."""
    paths = {module: path for path, module in model.model.named_modules()}
    blocks = attention_layers(model)
    return {n - 2 + place: f"{paths[blocks[layer]]}.attn{place}" for n, layer in cross_attention_numbers(model).items() for place in (1, 2)}


def lora_patches(model, lora: dict[str, torch.Tensor]) -> dict:
    """Weight patches for `model.add_patches` from the LoRA inside an adapter file ("3.to_q_lora.down.weight", ...).

    They are read by ComfyUI's own LoRA loader, which leaves out in silence what does not fit. Raises ValueError that names the
    attention for a tensor that belongs to no weight of the model and for a pair of other shapes than that weight's.
    """
    paths, renamed = attention_paths(model), {}
    for name, tensor in lora.items():
        number, kind, rest = name.split(".", 2)
        if int(number) not in paths:
            raise ValueError(f"attention {number} does not exist in this model, which has {len(paths)}")
        renamed[f"{paths[int(number)]}.{KINDS.get(kind, kind)}_lora.{rest}"] = tensor
    try:
        patches = comfy.lora.load_lora(renamed, comfy.lora.model_lora_keys_unet(model.model, {}))
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error
    if 2 * len(patches) != len(renamed):
        raise ValueError(f"{len(renamed) // 2} LoRA pairs, of which {len(patches)} fit this model")
    for key, adapter in patches.items():
        up, down = adapter.weights[:2]
        name = key.removesuffix(".weight")
        if up.ndim != 2 or down.ndim != 2:
            raise ValueError(f"at {name} it has shapes {list(up.shape)} and {list(down.shape)}, not two matrices")
        wrong = misfit(comfy.utils.get_attr(model.model, name), up, down)
        if wrong:
            raise ValueError(f"{name} {wrong}")
    return patches
