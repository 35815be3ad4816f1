"""LoRA files as low-rank pairs per module, for routing to single rows; reading and naming them is ComfyUI's work."""

from dataclasses import dataclass

import comfy.lora
import comfy.lora_convert
import comfy.utils
import folder_paths
import torch
from comfy.weight_adapter import LoRAAdapter

from .log import log

TEXT_ENCODER = ("lora_te", "text_encoder")


@dataclass(frozen=True, eq=False)
class LowRank:
    """y += scale * up(down(x)): up [out, rank], down [rank, in], as matrices."""

    up: torch.Tensor
    down: torch.Tensor
    scale: float


def lora_names() -> list[str]:
    """Files in ComfyUI's loras folders."""
    return folder_paths.get_filename_list("loras")


def read_lora(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a file in the loras folders. Raises FileNotFoundError; never unpickles objects."""
    return comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", name), safe_load=True)


def low_rank_pairs(model, lora: dict[str, torch.Tensor], name: str) -> dict[str, LowRank]:
    """The pairs of a LoRA by the name of the module inside `model.model` that each belongs to.

    Raises ValueError for kinds other than plain LoRA on Linear and 1x1 convolutions and for a LoRA of another model.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    found = comfy.lora.load_lora(comfy.lora_convert.convert_lora(lora), names, log_missing=False)
    if not found:
        examples = ", ".join(list(lora)[:3]) or "none: it is empty"
        raise ValueError(f"LoRA '{name}' has nothing for this model's UNet. Choose a LoRA trained on this model family. Its keys: {examples}.")
    if any(str(key).startswith(TEXT_ENCODER) for key in lora):
        log.warning("LoRA '%s' also changes the text encoder; only its UNet part acts on a branch. Encode the prompt with "
                    "Load LoRA's CLIP if you want the rest.", name)
    return {key.removesuffix(".weight"): _pair(model, key, adapter, name) for key, adapter in found.items()}


def _pair(model, key, adapter, name: str) -> LowRank:
    kind = type(adapter).__name__.removesuffix("Adapter") if not isinstance(adapter, tuple) else f"'{adapter[0]}' weights"
    if not isinstance(key, str) or not isinstance(adapter, LoRAAdapter):
        raise ValueError(_refusal(name, kind, key))
    up, down, alpha, mid, dora, reshape = adapter.weights
    if dora is not None:
        raise ValueError(_refusal(name, "DoRA", key))
    module = comfy.utils.get_attr(model.model, key.removesuffix(".weight"))
    inputs = getattr(module, "in_features", None) or getattr(module, "in_channels", None)
    outputs = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
    size = tuple(getattr(module, "kernel_size", (1, 1)))
    if inputs is None or mid is not None or reshape is not None or size != (1, 1) or any(n != 1 for n in (*up.shape[2:], *down.shape[2:])):
        raise ValueError(_refusal(name, f"convolution {size[0]}x{size[-1]}" if inputs is not None else kind, key))
    up, down = up.flatten(1), down.flatten(1)
    if (up.shape[0], down.shape[1]) != (outputs, inputs) or up.shape[1] != down.shape[0]:
        raise ValueError(f"LoRA '{name}' belongs to another model family: {key.removesuffix('.weight')} takes {inputs} channels to {outputs}, "
                         f"the LoRA {down.shape[1]} to {up.shape[0]}. Choose a LoRA of this checkpoint's family.")
    return LowRank(up, down, 1.0 if alpha is None else float(alpha) / down.shape[0])


def _refusal(name: str, kind: str, key) -> str:
    return (f"LoRA '{name}' is of a kind that cannot be routed to one branch: {kind} at {key}. Use a plain LoRA on attention, linear "
            "layers or 1x1 convolutions, or apply this one to the whole model with Load LoRA.")
