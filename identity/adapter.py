"""Reading IP-Adapter FaceID files: which kind it is, and its parts."""

from dataclasses import dataclass
from pathlib import Path

import torch

from .projection import FaceProjection
from .weights import not_finite, read_tensors

BASES = {768: "sd15", 2048: "sdxl"}
CURE = ("Load an IP-Adapter FaceID file: ip-adapter-faceid_*, ip-adapter-faceid-plus_* or ip-adapter-faceid-plusv2_*, "
        "or the demo's face adapter.")


@dataclass(frozen=True, eq=False)
class FaceAdapter:
    """A FaceID file. n counts the attention modules of the UNet (down, up, middle): self-attention even, cross-attention odd.

    base:        "sd15" or "sdxl", or "other" for any other text width
    width:       C, that of the tokens and of the model's text
    plus:        FaceID-Plus, which also needs CLIP's view of the face, states of width `clip_width`
    version:     "v1" or "v2", for FaceID-Plus
    keys_values: {n: (to_k_ip [inner, C], to_v_ip [inner, C])}
    lora:        {"{n}.to_q_lora.down.weight": ...}, as in the file
    """

    name: str
    base: str
    width: int
    plus: bool
    version: str
    clip_width: int | None
    projection: FaceProjection
    keys_values: dict[int, tuple[torch.Tensor, torch.Tensor]]
    lora: dict[str, torch.Tensor]


def load_adapter(path: str | Path, version: str = "auto") -> FaceAdapter:
    """The FaceID adapter in a .safetensors or .bin file, in the file's precision.

    version: "v1" or "v2" of FaceID-Plus, which hold the same tensors; "auto" goes by "plusv2" in the file's name.
    Raises ValueError when the file is damaged, unsafe, or no FaceID adapter, and for weights that are not finite.
    """
    path = Path(path)
    tensors = read_tensors(path)
    network = part(tensors, "image_proj.")
    layers = part(tensors, "ip_adapter.") or part(tensors, "adapter_modules.")
    check_kind(path, tensors, network, layers)
    broken = not_finite(tensors)
    if broken is not None:
        raise ValueError(f"'{path}' holds NaN or infinite values in '{broken}': the picture would be empty. Download the file again.")
    if version == "auto":
        version = "v2" if "plusv2" in path.name.lower().replace("-", "").replace("_", "") else "v1"
    try:
        projection = FaceProjection(network, version)
        numbers = sorted(int(name.split(".")[0]) for name in layers if name.endswith(".to_k_ip.weight"))
        keys_values = {n: (layers[f"{n}.to_k_ip.weight"], layers[f"{n}.to_v_ip.weight"]) for n in numbers}
        fits = all(weight.shape[1] == projection.width for pair in keys_values.values() for weight in pair)
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"'{path}' looks like an IP-Adapter FaceID file, but its tensors are not complete: {str(error).splitlines()[0]} "
                         "Download the file again.") from error
    if not fits or not numbers:
        raise ValueError(f"'{path}' mixes parts of two adapters: its tokens have width {projection.width}, its attention layers do not. {CURE}")
    return FaceAdapter(path.name, BASES.get(projection.width, "other"), projection.width, projection.plus, version, projection.clip_width,
                       projection, keys_values, {name: value for name, value in layers.items() if "_lora." in name})


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def check_kind(path: Path, tensors: dict, network: dict, layers: dict) -> None:
    """Raises ValueError unless the tensors are those of a FaceID adapter with its LoRA."""
    if not network or not layers:
        found = ", ".join(sorted(tensors)[:4]) or "no tensors"
        raise ValueError(f"'{path}' is not an IP-Adapter file: it holds {found}{', ...' if len(tensors) > 4 else ''} instead of image_proj and "
                         f"ip_adapter. {CURE}")
    faceid = {"proj.0.weight", "proj.2.weight", "norm.weight"} <= set(network)
    if not faceid:
        raise ValueError(f"'{path}' is a plain IP-Adapter: it takes pictures, not faces. {CURE}")
    if "0.to_q_lora.down.weight" not in layers:
        raise ValueError(f"'{path}' is a FaceID adapter without the LoRA that belongs in its file (FaceID Portrait, or a file that was cut in "
                         f"two). {CURE}")
