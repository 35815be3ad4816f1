"""Keeping what is trained, also when a training ends early: names below the output folder, tried before the first step."""

import os

import folder_paths
import torch
from safetensors.torch import save_file

from .log import log

PREFIX = "loras/style_lora_unfinished"  # Load LoRA finds what lies in output/loras
# In the names of files, on some system; Windows hides what follows a colon.
ILLEGAL = set('<>:"|?*') | {chr(number) for number in range(32)}


def check_prefix(prefix: str, steps: int, node: str, name: str = "cancel_prefix", what: str = "an unfinished LoRA",
                 example: str = PREFIX) -> None:
    """Raises ValueError unless a file of up to `steps` steps can be kept under `prefix`: one is made and removed."""
    def refuse(reason: str) -> None:
        raise ValueError(f"'{name}' of {node} is '{prefix}', where {what} cannot be kept: {reason}. Write a folder and a "
                         f"name below {folder_paths.get_output_directory()}, for example {example}.")

    bad = sorted(ILLEGAL & set(prefix))
    if bad:
        refuse(f"{bad[0]!r} cannot stand in the name of a file")
    if not prefix.strip() or prefix.endswith(("/", "\\")) or os.path.basename(os.path.normpath(prefix)) in (".", ".."):
        refuse("it names no file")
    try:
        part = path_of(prefix, steps) + ".part"
        open(part, "xb").close()
        os.remove(part)
    except Exception as error:  # ComfyUI raises a bare Exception for what leads out of the output folder
        refuse((getattr(error, "strerror", None) or str(error).strip("* \n").splitlines()[0]).rstrip("."))


def path_of(prefix: str, steps: int) -> str:
    """A new file's path in the output folder; its folder is made. Raises Exception for one outside of it."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return os.path.join(folder, f"{name}_{counter:05}_{steps}_steps.safetensors")


def keep(tensors: dict[str, torch.Tensor], prefix: str, steps: int, node: str) -> None:
    """Saves an unfinished LoRA under `prefix`, else under the default name, else in the output folder itself."""
    keep_somewhere(lambda path: save_whole(tensors, path), (prefix, PREFIX, os.path.basename(PREFIX)), steps, node, "LoRA",
                   "Load LoRA lists it after a refresh when it lies in output/loras.")


def keep_somewhere(write, prefixes: tuple[str, ...], steps: int, node: str, what: str, hint: str) -> None:
    """write(path) at the first of `prefixes` where it works; says where.

    A file that cannot be written whole is not left behind. Never raises what the disk does: why training ended matters
    more.
    """
    for place in dict.fromkeys(prefixes):
        try:
            path = path_of(place, steps)
            write(path)
        except Exception as error:
            log.error("%s: the %s of %d steps could not be saved under '%s' in %s: %s", node, what, steps, place,
                      folder_paths.get_output_directory(), error)
        else:
            log.warning("%s ended after %d steps. What is trained so far is kept in %s; %s", node, steps, path, hint)
            return


def save_whole(tensors: dict[str, torch.Tensor], path: str, metadata: dict[str, str] | None = None) -> None:
    part = path + ".part"
    try:
        save_file(tensors, part, metadata)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)
