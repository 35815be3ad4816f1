"""CLIP as one space for pictures and texts: what ComfyUI's CLIP (text only) and CLIP_VISION (pictures only) are not.

With DINO beside it, it is what MMFS learns from.
"""

import os
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd1_clip
import folder_paths
import torch
from PIL import Image

from ..evaluation.clip_model import Clip
from ..evaluation.errors import EvaluationError
from ..stylegan import dino
from .log import log

NODE = "CLIP Similarity Loader"
FOLDERS = ["clip_vision", "text_encoders"]  # text_encoders is models/clip as well
WEIGHTS, CONFIG = "model.safetensors", "config.json"
DINO, NO_DINO = "dino", "none"
DINO_FILE = "dino_vitbase8_pretrain.pth"
BATCH = 32

folder_paths.add_model_folder_path(DINO, os.path.join(folder_paths.models_dir, DINO))


def model_names() -> list[str]:
    """Folders of a CLIP model as its publishers share it: model.safetensors with config.json beside it."""
    listed = (folder_paths.get_filename_list(folder) for folder in FOLDERS)
    names = {name for folder in listed for name in folder if os.path.basename(name) == WEIGHTS}
    return sorted(name for name in names if os.path.isfile(os.path.join(os.path.dirname(_path(name) or ""), CONFIG)))


def dino_names() -> list[str]:
    """ "none", then what lies in models/dino."""
    return [NO_DINO, *folder_paths.get_filename_list(DINO)]


def load(name: str, dino_name: str = NO_DINO) -> "Similarity":
    """A CLIP model of these folders, and DINO. Raises ValueError where one is not there, or is none."""
    path = _path(name)
    if path is None or os.path.basename(path) != WEIGHTS:
        places = " or ".join(place for folder in FOLDERS for place in folder_paths.get_folder_paths(folder))
        raise ValueError(
            f"There is no CLIP model '{name}' in {places}. Put a folder with {WEIGHTS} and {CONFIG} there, "
            "for example clip-vit-base-patch32 from https://huggingface.co/openai/clip-vit-base-patch32, "
            "and press R in ComfyUI."
        )
    vocabulary = Path(comfy.sd1_clip.__file__).with_name("sd1_tokenizer")
    with torch.inference_mode(False):  # MMFS's few-shot training sends gradients through
        keys = None if dino_name == NO_DINO else load_dino(dino_name)
        try:
            clip = Clip(Path(path).parent, "cpu", vocabulary)
        except EvaluationError as error:
            raise ValueError(f"{error}. {NODE} needs a whole CLIP model, pictures and texts.") from None
        clip.model.requires_grad_(False)
        return Similarity(clip, keys)


def load_dino(name: str) -> dino.Dino:
    path = folder_paths.get_full_path(DINO, name)
    if path is None:
        raise ValueError(
            f"{NODE}: there is no DINO '{name}' in {' or '.join(folder_paths.get_folder_paths(DINO))}. Put "
            f"{DINO_FILE} from {dino.PAGE} there and press R in ComfyUI."
        )
    return dino.load(path)


def _path(name: str) -> str | None:
    return next((path for folder in FOLDERS if (path := folder_paths.get_full_path(folder, name))), None)


class _Holder(torch.nn.Module):
    """ComfyUI writes `device` to the module it manages; transformers' modules forbid that."""

    device = None

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model


def managed(model: torch.nn.Module) -> comfy.model_patcher.ModelPatcher:
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(
        _Holder(model), management.text_encoder_device(), management.text_encoder_offload_device()
    )


class Similarity:
    """ATELIER_GUIDANCE: embeddings of pictures and texts in one space, rows of length 1 on the CPU.

    It is a Guide of MMFS's few-shot training too, where `dino` is there and `loaded` has been called.
    """

    def __init__(self, clip: Clip, keys: dino.Dino | None = None):
        self.clip, self.dino = clip, keys
        self.patcher = managed(clip.model)
        self.dino_patcher = None if keys is None else managed(keys)

    def image_features(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Pictures [h, w, RGB] in [0, 1], each of its own size -> [pictures, D]; 32 at a time."""
        self.loaded()
        pictures = [_pil(image) for image in images]
        return torch.cat(
            [self.clip.images(pictures[start : start + BATCH]).cpu() for start in range(0, len(pictures), BATCH)]
        )

    def text_features(self, texts: list[str]) -> torch.Tensor:
        """Texts -> [texts, D]. What goes beyond CLIP's 77 tokens is left out, with a warning."""
        self.loaded()
        for text in texts:
            if len(self.clip.tokenize(text)["input_ids"]) > 77:
                log.warning("CLIP reads 77 tokens; the end of '%s...' is left out.", text[:40])
        return torch.stack([self.clip.text(text).cpu() for text in texts])

    def patches(self, image: torch.Tensor) -> torch.Tensor:
        """A picture [h, w, RGB] in [0, 1] -> its patches [49, C] after CLIP's fourth layer, cut as for its embedding."""
        self.loaded()
        return self.clip.see(self.clip.cut(_pil(image))[None])[1][0]

    def see(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.clip.see(pictures)

    def keys(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.dino(pictures.float())

    def loaded(self, *others: comfy.model_patcher.ModelPatcher) -> torch.device:
        """CLIP, with `others` also DINO and those, all at once on the device."""
        wanted = [self.patcher, *([self.dino_patcher] if others and self.dino_patcher else []), *others]
        comfy.model_management.load_models_gpu(wanted)
        self.clip.device = self.patcher.load_device
        return self.clip.device


def _pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().cpu().numpy())
