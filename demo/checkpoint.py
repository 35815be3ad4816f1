"""The one file that holds the microworld's weights, in half precision."""

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


@dataclass(frozen=True)
class Microworld:
    unet: dict[str, torch.Tensor]      # weights for host.demo_model.model
    text: TextEncoder
    codec: Codec
    judges: Judges
    spread: torch.Tensor               # [D] spread of judges.style_features over the world's renders
    metadata: dict[str, str]           # recipe, minutes, seeds, metrics


def save(path: Path, unet: dict, text: dict, codec: dict, judges: dict, spread: torch.Tensor, metadata: dict[str, str]) -> None:
    """Write the weights of the parts (state dicts) as float16."""
    tensors = {"style_spread": spread}
    for prefix, weights in (("unet", unet), ("text", text), ("codec", codec), ("judges", judges)):
        tensors |= {f"{prefix}.{name}": value for name, value in weights.items()}
    save_file({name: value.half().contiguous().cpu() for name, value in tensors.items()}, path, metadata=metadata)


def load(path: Path = PATH) -> Microworld:
    """Raises FileNotFoundError when the file is not there and ValueError when it does not fit this code, with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"The demo model {path.name} is missing from {path.parent}. It is part of the pack: install the pack again, "
                                "or train it with 'python3 atelier.py train-demo'.")
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    part = lambda prefix: {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    modules = []
    try:
        for module, prefix in ((TextEncoder(), "text."), (Codec(), "codec."), (Judges(), "judges.")):
            module.load_state_dict(part(prefix))
            modules.append(module.eval().requires_grad_(False))
    except RuntimeError as error:
        raise ValueError(f"The demo model {path} belongs to another version of the pack. Install the pack again, or train the model "
                         "with 'python3 atelier.py train-demo'.") from error
    return Microworld(part("unet."), *modules, tensors["style_spread"], metadata)
