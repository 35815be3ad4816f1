"""The one file that holds the microworld's weights: half precision, the large ones a byte each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .codec import Codec
from .judges import Judges
from .text import TextEncoder

PATH = Path(__file__).with_name("microworld.safetensors")
STEP = ".step"         # ends the name of what one unit of a byte stands for, in each row


@dataclass(frozen=True)
class Microworld:
    unet: dict[str, torch.Tensor]      # weights for host.demo_model.model
    text: TextEncoder
    codec: Codec
    judges: Judges
    spread: torch.Tensor               # [D] spread of judges.style_features over the world's renders
    scale: float                       # of the latents the UNet was trained on; the codec's own have spread 1
    metadata: dict[str, str]           # recipe, seeds, metrics


def to_bytes(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [N, ...] -> int8 of the same shape and the step [N] by which each row is to be multiplied."""
    step = (weights.flatten(1).abs().amax(1) / 127).clamp(min=1e-20)      # of a row of zeros
    return (weights / step.view(-1, *[1] * (weights.ndim - 1))).round().to(torch.int8), step


def from_bytes(values: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return values.float() * step.view(-1, *[1] * (values.ndim - 1))


def packed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What goes into a file: kernels and matrices of 4096 weights or more as bytes with their steps, the rest as float16."""
    tensors = {}
    for name, value in weights.items():
        value = value.detach().float().cpu()
        if value.ndim > 1 and value.numel() >= 4096:
            tensors[name], tensors[name + STEP] = to_bytes(value)
        else:
            tensors[name] = value.half()
    return {name: value.contiguous() for name, value in tensors.items()}


def unpacked(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of `packed`, in float32."""
    return {name: from_bytes(value, stored[name + STEP]) if name + STEP in stored else value.float()
            for name, value in stored.items() if not name.endswith(STEP)}


def save(path: Path, unet: dict, text: dict, codec: dict, judges: dict, spread: torch.Tensor, metadata: dict[str, str]) -> None:
    """Write the parts (state dicts): kernels and matrices of the UNet and the codec as bytes, the rest as float16."""
    exact = {f"text.{name}": value for name, value in text.items()} | {f"judges.{name}": value for name, value in judges.items()}
    large = {f"unet.{name}": value for name, value in unet.items()} | {f"codec.{name}": value for name, value in codec.items()}
    tensors = {"style_spread": spread} | exact
    save_file({name: value.half().contiguous() for name, value in tensors.items()} | packed(large), path, metadata=metadata)


def load(path: Path = PATH) -> Microworld:
    """Raises FileNotFoundError when the file is not there and ValueError when it does not fit this code, with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"The demo model {path.name} is missing from {path.parent}. It is part of the pack: install the pack again, "
                                "or train it with 'python3 atelier.py train-demo'.")
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = unpacked({name: file.get_tensor(name) for name in file.keys()})
    part = lambda prefix: {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    modules = []
    try:
        for module, prefix in ((TextEncoder(), "text."), (Codec(), "codec."), (Judges(), "judges.")):
            module.load_state_dict(part(prefix))
            modules.append(module.eval().requires_grad_(False))
        return Microworld(part("unet."), *modules, tensors["style_spread"], float(metadata["scale"]), metadata)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"The demo model {path} belongs to another version of the pack. Install the pack again, or train the model "
                         "with 'python3 atelier.py train-demo'.") from error
