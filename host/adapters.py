"""LoRA files as low-rank pairs per module, for routing to single rows; reading and naming them is ComfyUI's work."""

from collections.abc import Mapping
from dataclasses import dataclass

import comfy.lora
import comfy.lora_convert
import comfy.utils
import folder_paths
import torch
from comfy.weight_adapter import LoRAAdapter

from ..identity.weights import not_finite, read_tensors
from .log import log

# Names of the two halves of a pair, up and down, as the LoRA loaders of ComfyUI know them.
HALVES = {".lora_up.weight": ".lora_down.weight", "_lora.up.weight": "_lora.down.weight", ".lora.up.weight": ".lora.down.weight",
          ".lora_linear_layer.up.weight": ".lora_linear_layer.down.weight", ".lora_B.weight": ".lora_A.weight", ".lora_B": ".lora_A",
          ".lora_B.default.weight": ".lora_A.default.weight"}
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
    """The tensors of a file in the loras folders. Raises ValueError for a file that is not there, damaged or no LoRA."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        folders = " or ".join(folder_paths.get_folder_paths("loras"))
        raise ValueError(f"There is no LoRA '{name}' in {folders}. Put a LoRA file there and press R in ComfyUI, or set lora_name to none.")
    return check_lora(read_tensors(path), path)


def check_lora(lora: Mapping[str, torch.Tensor], name: str) -> Mapping[str, torch.Tensor]:
    """The LoRA itself. Raises ValueError for what is of use to no model: NaN, and pairs that lack a half or a common rank."""
    def refuse(reason: str) -> None:
        raise ValueError(f"LoRA '{name}' {reason}. Download or train it again, or choose another.")

    if not lora:
        refuse("is empty: it holds no tensors")
    strange = next((key for key, value in lora.items() if not isinstance(key, str) or not torch.is_tensor(value)), None)
    if strange is not None:
        refuse(f"is no list of tensors: it holds a {type(lora[strange]).__name__} in '{strange}'")
    broken = not_finite(lora)
    if broken is not None:
        refuse(f"holds NaN or infinite values in '{broken}'")
    for key, tensor in lora.items():
        if key.endswith(".alpha") and tensor.numel() != 1:
            refuse(f"is damaged: '{key}' has shape {list(tensor.shape)}, and must be one number")
        for up_end, down_end in HALVES.items():
            if key.endswith(down_end) and key.removesuffix(down_end) + up_end not in lora:
                refuse(f"is damaged: '{key}' is there without its other half '{up_end}'")
            if key.endswith(up_end):
                down = lora.get(key.removesuffix(up_end) + down_end)
                if down is None:
                    refuse(f"is damaged: '{key}' is there without its other half '{down_end}'")
                if tensor.ndim < 2 or down.ndim < 2 or tensor.shape[1] != down.shape[0] or not tensor.numel() or not down.numel():
                    refuse(f"is damaged: the halves of '{key.removesuffix(up_end)}' have shapes {list(tensor.shape)} and {list(down.shape)}, which "
                           "share no rank")
                if not (tensor.is_floating_point() and down.is_floating_point()):
                    refuse(f"is damaged: '{key}' holds {str(tensor.dtype).removeprefix('torch.')} instead of weights")
    return lora


def low_rank_pairs(model, lora: dict[str, torch.Tensor], name: str) -> dict[str, LowRank]:
    """The pairs of a LoRA by the name of the module inside `model.model` that each belongs to.

    Raises ValueError for kinds other than plain LoRA on Linear and 1x1 convolutions and for a LoRA of another model.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    try:
        found = comfy.lora.load_lora(comfy.lora_convert.convert_lora(lora), names, log_missing=False)
    except Exception as error:  # what is missing from kinds that cannot be routed anyway
        raise ValueError(f"LoRA '{name}' cannot be read by ComfyUI: {type(error).__name__}: {error}. Download or train it again, or choose "
                         "another.") from error
    if not found:
        examples = ", ".join(list(lora)[:3])
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
    outputs, inputs = sizes(module)
    size = tuple(getattr(module, "kernel_size", (1, 1)))
    if inputs is None or mid is not None or reshape is not None or size != (1, 1) or any(n != 1 for n in (*up.shape[2:], *down.shape[2:])):
        raise ValueError(_refusal(name, f"convolution {size[0]}x{size[-1]}" if inputs is not None else kind, key))
    up, down = up.flatten(1), down.flatten(1)
    wrong = misfit(module, up, down)
    if wrong:
        raise ValueError(f"LoRA '{name}' belongs to another model family: {key.removesuffix('.weight')} {wrong}. Choose a LoRA of this "
                         "checkpoint's family.")
    return LowRank(up, down, 1.0 if alpha is None else float(alpha) / down.shape[0])


def sizes(module) -> tuple[int | None, int | None]:
    """(outputs, inputs) of a Linear or a convolution of any storage; its weight is not looked at."""
    return (getattr(module, "out_features", None) or getattr(module, "out_channels", None),
            getattr(module, "in_features", None) or getattr(module, "in_channels", None))


def misfit(module, up: torch.Tensor, down: torch.Tensor) -> str | None:
    """How the pair up [out, rank], down [rank, in] does not fit a Linear or a 1x1 convolution; None where it does."""
    outputs, inputs = sizes(module)
    if up.shape[0] == outputs and down.shape[1] == inputs and up.shape[1] == down.shape[0] > 0:
        return None
    ranks = "" if up.shape[1] == down.shape[0] > 0 else f", by halves of rank {down.shape[0]} and {up.shape[1]}"
    return f"takes {inputs} channels to {outputs}, the LoRA {down.shape[1]} to {up.shape[0]}{ranks}"


def _refusal(name: str, kind: str, key) -> str:
    return (f"LoRA '{name}' is of a kind that cannot be routed to one branch: {kind} at {key}. Use a plain LoRA on attention, linear "
            "layers or 1x1 convolutions, or apply this one to the whole model with Load LoRA.")
