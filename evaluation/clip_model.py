"""CLIP: the metrics' ViT-L/14, and whatever guides MMFS and finds FastSAM's words."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, normalize, resize, to_tensor

from .errors import EvaluationError, MissingWeights
from .pictures import first_line

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures
TOKENS = 77
PATCHES_AFTER = 4   # vision layers; what MMFS's projection loss compares


class Clip:
    """A CLIPModel from a folder (config.json, model.safetensors). Raises EvaluationError.

    Its words are those of vocab.json and merges.txt in the folder, else those that ComfyUI has.
    """

    def __init__(self, folder: Path, device, vocabulary: Path | None = None):
        from transformers import CLIPModel
        try:
            self.model, report = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        except Exception as error:  # the library raises anything, down to KeyError
            raise EvaluationError(f"{folder} cannot be read as a CLIP model: {first_line(error)}") from None
        if report["missing_keys"]:  # the library would go on with random numbers
            raise EvaluationError(f"{folder} is no whole CLIP model: {sorted(report['missing_keys'])[0]} is missing")
        self.model = self.model.float().to(device).eval()
        self.device, self.side = device, self.model.config.vision_config.image_size
        self.width = self.model.config.projection_dim
        own = (Path(folder) / "vocab.json").is_file() and (Path(folder) / "merges.txt").is_file()
        self.tokenize = tokenizer(Path(folder) if own else vocabulary)
        self.text = lru_cache(maxsize=256)(self.text)

    def image(self, picture: Image.Image) -> torch.Tensor:
        """The embedding [D] of a picture, of length 1. The shorter side is scaled to 224 pixels, the middle is cut out."""
        return self.images([picture])[0]

    def images(self, pictures: list[Image.Image]) -> torch.Tensor:
        """The embeddings [pictures, D] of several pictures, in one call of the network."""
        return self.see(torch.stack([self.cut(picture) for picture in pictures]))[0]

    def cut(self, picture: Image.Image) -> torch.Tensor:
        """[3, 224, 224] in [0, 1]."""
        return cut(picture, self.side)

    def see(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures [B, 3, h, w] in [0, 1] -> (embeddings [B, D] of length 1, patches [B, 49, C] after the fourth layer).

        Other sizes than CLIP's 224 are scaled to it, bilinear with antialias. Gradients pass.
        """
        if pictures.shape[-2:] != (self.side, self.side):
            pictures = F.interpolate(pictures, (self.side, self.side), mode="bilinear", antialias=True)
        pixels = normalize(pictures.to(self.device), MEAN, STD)
        out = self.model.vision_model(pixel_values=pixels, output_hidden_states=True)
        layer = out.hidden_states[min(PATCHES_AFTER, len(out.hidden_states) - 1)]
        return F.normalize(self.model.visual_projection(out.pooler_output), dim=1), layer[:, 1:]

    def text(self, words: str) -> torch.Tensor:
        """The embedding [D] of a text, of length 1. CLIP reads 77 tokens; later ones are cut off."""
        tokens = torch.tensor([token_ids(self.tokenize, words)], device=self.device)
        return F.normalize(self.model.text_projection(self.model.text_model(input_ids=tokens).pooler_output)[0], dim=0)


def cut(picture: Image.Image, side: int) -> torch.Tensor:
    """[3, side, side] in [0, 1]: the shorter side scaled, bicubic, and the middle cut out, as CLIP's own code does."""
    return to_tensor(center_crop(resize(picture, side, InterpolationMode.BICUBIC), side))


def tokenizer(folder: Path | None = None):
    """CLIP's tokenizer, from the files that ComfyUI has; `folder` where those are known."""
    from transformers import CLIPTokenizer
    folder = folder or Path(os.environ.get("COMFYUI_PATH", ".")) / "comfy" / "sd1_tokenizer"
    if not (folder / "vocab.json").is_file():
        raise MissingWeights(f"ComfyUI's CLIP vocabulary is not in {folder}: set COMFYUI_PATH to a ComfyUI")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def token_ids(tokenize, words: str) -> list[int]:
    """Start, the words, end; at most 77."""
    return tokenize(words, truncation=True, max_length=TOKENS)["input_ids"]
