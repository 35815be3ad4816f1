"""CLIP as one space for pictures and texts: what ComfyUI's CLIP (text only) and CLIP_VISION (pictures only) are not."""

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
from .log import log

FOLDERS = ["clip_vision", "text_encoders"]     # text_encoders is models/clip as well
WEIGHTS, CONFIG = "model.safetensors", "config.json"
BATCH = 32


def model_names() -> list[str]:
    """Folders of a CLIP model as its publishers share it: model.safetensors with config.json beside it."""
    names = {name for folder in FOLDERS for name in folder_paths.get_filename_list(folder) if os.path.basename(name) == WEIGHTS}
    return sorted(name for name in names if os.path.isfile(os.path.join(os.path.dirname(_path(name) or ""), CONFIG)))


def load(name: str) -> "Similarity":
    """A CLIP model of these folders. Raises ValueError where there is none, or it is none."""
    path = _path(name)
    if path is None or os.path.basename(path) != WEIGHTS:
        places = " or ".join(place for folder in FOLDERS for place in folder_paths.get_folder_paths(folder))
        raise ValueError(f"There is no CLIP model '{name}' in {places}. Put a folder with {WEIGHTS} and {CONFIG} there, for example "
                         "clip-vit-base-patch32, and press R in ComfyUI.")
    vocabulary = Path(comfy.sd1_clip.__file__).with_name("sd1_tokenizer")
    try:
        return Similarity(Clip(Path(path).parent, "cpu", vocabulary))
    except EvaluationError as error:
        raise ValueError(f"{error}. CLIP Similarity Loader needs a whole CLIP model, pictures and texts.") from None


def _path(name: str) -> str | None:
    return next((path for folder in FOLDERS if (path := folder_paths.get_full_path(folder, name))), None)


class _Holder(torch.nn.Module):
    """ComfyUI writes `device` to the module it manages; transformers' modules forbid that."""

    device = None

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model


class Similarity:
    """ATELIER_GUIDANCE: embeddings of pictures and texts in one space, rows of length 1 on the CPU."""

    def __init__(self, clip: Clip):
        self.clip = clip
        self.patcher = comfy.model_patcher.ModelPatcher(_Holder(clip.model), comfy.model_management.text_encoder_device(),
                                                        comfy.model_management.text_encoder_offload_device())

    def image_features(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Pictures [h, w, RGB] in [0, 1], each of its own size -> [pictures, D]; 32 at a time."""
        self._load()
        pictures = [Image.fromarray((image.clamp(0, 1) * 255).round().byte().cpu().numpy()) for image in images]
        return torch.cat([self.clip.images(pictures[start:start + BATCH]).cpu() for start in range(0, len(pictures), BATCH)])

    def text_features(self, texts: list[str]) -> torch.Tensor:
        """Texts -> [texts, D]. What goes beyond CLIP's 77 tokens is left out, with a warning."""
        self._load()
        for text in texts:
            if len(self.clip.tokenize(text)["input_ids"]) > 77:
                log.warning("CLIP reads 77 tokens; the end of '%s...' is left out.", text[:40])
        return torch.stack([self.clip.text(text).cpu() for text in texts])

    def _load(self) -> None:
        comfy.model_management.load_models_gpu([self.patcher])
        self.clip.device = self.patcher.load_device
