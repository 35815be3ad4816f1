"""The shipped pictures among ComfyUI's input pictures, so that its previews, mask editor and upload work with them."""

import hashlib
import shutil
from pathlib import Path

import folder_paths
import nodes
import numpy as np
import torch
from PIL import Image

from .log import log

SHIPPED = Path(__file__).resolve().parents[1] / "demo" / "pictures"
FOLDER = "atelier"  # in ComfyUI's input folder; short, as the editor cuts long names
DEFAULT = f"{FOLDER}/content.png"
MARK = "portrait-atelier"  # a text in a shipped PNG: the hash of its pixels
# Those of the demo model before, which had no mark yet: the first bytes of the files' hashes.
UNMARKED = "60225aac bf7996eb a942d4bf 2d660e6c c5141c44 a9e676c5 f0e9a299 1907761b d9425c4b 1c5d8673".split()


def offer() -> None:
    """Copy the shipped pictures into a subfolder of ComfyUI's input folder, for the editor's previews.

    A file of the user's own under such a name stays; a copy that an earlier version of the pack left is brought up to date.
    """
    target = Path(folder_paths.get_input_directory()) / FOLDER
    try:
        target.mkdir(parents=True, exist_ok=True)
        for source in SHIPPED.glob("*.png"):
            copy = target / source.name
            if not copy.exists() or outdated(copy, source):
                shutil.copyfile(source, copy)
    except OSError as error:  # a read-only folder: the graphs run all the same, without previews
        log.warning("The demo pictures have no preview, as they cannot be copied to %s: %s", target, error)


def outdated(copy: Path, source: Path) -> bool:
    """Whether a file is another than the shipped one, and was shipped before."""
    data = copy.read_bytes()
    if data == source.read_bytes():
        return False
    try:
        with Image.open(copy) as picture:
            marked = picture.info.get(MARK) == pixels_hash(picture)
    except (OSError, SyntaxError):  # no picture at all: not ours
        return False
    return marked or hashlib.sha256(data).hexdigest()[:8] in UNMARKED


def pixels_hash(picture: Image.Image) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def names() -> list[str]:
    """The shipped pictures, then the pictures of the input folder."""
    inputs = Path(folder_paths.get_input_directory())
    own = [path.name for path in inputs.iterdir() if path.is_file()] if inputs.is_dir() else []
    own = sorted(folder_paths.filter_files_content_types(own, ["image"]))
    return [f"{FOLDER}/{path.name}" for path in sorted(SHIPPED.glob("*.png"))] + own


def shipped(name: str) -> Path | None:
    """The file in the pack behind `name`, whether it could be copied or not."""
    folder, _, file = name.partition("/")
    return next((path for path in SHIPPED.glob("*.png") if (folder, file) == (FOLDER, path.name)), None)


def problem(name: str) -> str | None:
    """What is wrong with `name`, or None."""
    if folder_paths.exists_annotated_filepath(name) or shipped(name):
        return None
    folder = folder_paths.get_input_directory()
    return (
        f"no picture {name!r}: it is neither in ComfyUI's input folder ({folder}) nor one of those that ships with this "
        f"pack. Choose another, or press the node's upload button."
    )


def fingerprint(name: str) -> str:
    """Changes when the file behind `name` does."""
    path = shipped(name)
    if folder_paths.exists_annotated_filepath(name):
        path = Path(folder_paths.get_annotated_filepath(name))
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else name


def load(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(image, mask) as Load Image gives them: [N, H, W, 3] and [N, h, w], 0 to 1; the mask is 1 where transparent.

    Raises ValueError for a name that is neither in the input folder nor shipped.
    """
    if text := problem(name):
        raise ValueError(text)
    if folder_paths.exists_annotated_filepath(name):
        return nodes.LoadImage().load_image(name)
    with Image.open(shipped(name)) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGBA"))).float() / 255
    return pixels[None, ..., :3], 1 - pixels[None, ..., 3]
