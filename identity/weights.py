"""Reading files of weights from outside without running what is in them: FaceID and StyleGAN2 files, and LoRA files for the host."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch

SAFE = (".safetensors", ".sft")


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a file by their full names; nested dictionaries are joined with dots.

    Never runs code from the file. Raises ValueError for a file that cannot be opened, is damaged, holds Python
    objects, or claims more than it holds.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in SAFE:
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # a bag of values; training files keep their command line in one
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):  # a whole training checkpoint
            loaded = loaded["state_dict"]
        return dict(flatten(loaded))
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise ValueError(f"'{path}' could not be opened: {error.strerror}. Put the file there again.") from error
    except Exception as error:  # a damaged pickle makes the safe reader raise anything, down to IndexError
        raise ValueError(f"'{path}' could not be read as plain weights: it is damaged, or holds Python objects, "
                         "which are never loaded because they can run code. Download the file again, or use its "
                         ".safetensors version.") from error


def flatten(tree, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a tree of dictionaries. Raises ValueError where one stands twice, and for unusual tensors."""
    seen = set() if seen is None else seen
    if torch.is_tensor(tree):
        # A few bytes may be spread over a shape of any size; whoever computes with it would need all of it.
        # Sparse tensors have no storage to ask.
        if tree.is_meta or tree.is_quantized or tree.nbytes > tree.untyped_storage().nbytes():
            raise ValueError(f"'{prefix}' is no plain tensor")
        yield prefix, tree
    elif isinstance(tree, dict):
        if id(tree) in seen:  # a circle, or doubled at every level: endless either way
            raise ValueError(f"'{prefix}' stands there twice")
        seen.add(id(tree))
        for name, branch in tree.items():
            yield from flatten(branch, f"{prefix}.{name}" if prefix else str(name), seen)


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinite values."""
    for name, tensor in tensors.items():
        fp8 = tensor.element_size() == 1 and tensor.is_floating_point()
        wide = tensor.float() if fp8 else tensor  # fp8 knows no isfinite
        if not torch.isfinite(wide).all():
            return name
    return None
