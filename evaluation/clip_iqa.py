"""CLIP-IQA: does CLIP call it a good photo? (Wang, Chan, Loy, 2023)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torchvision.transforms.functional import normalize

from . import pictures
from .clip_model import MEAN, STD, TOKENS, token_ids, tokenizer
from .errors import EvaluationError
from .weights import library, read_tensors

PROMPTS = ("Good photo.", "Bad photo.")


class ClipIqa:
    """Share of "Good photo." against "Bad photo.", from 0 to 1; ZePo's column CLIP-IQA. The picture keeps its size."""

    name, needs, better = "clip_iqa", ("generated",), "up"

    def __init__(self, tools):
        clip = library("piq.feature_extractors.clip")
        path = tools.find(self.name, "resnet50_clip.openai/open_clip_model.safetensors",
                          "resnet50_clip.openai/open_clip_pytorch_model.bin")
        tensors, tokenize = read_tensors(path), tokenizer()
        if "visual.layer1.0.conv1.weight" not in tensors:
            raise EvaluationError(f"{path} is no CLIP with a ResNet: visual.layer1.0.conv1.weight is missing")
        try:
            # Halves the weights, as OpenAI's own are.
            self.network = clip.build_model(tensors).float().to(tools.device).requires_grad_(False)
        except (KeyError, RuntimeError, AssertionError, ValueError) as error:
            raise EvaluationError(f"{path} is no CLIP with a ResNet: {pictures.first_line(error)}") from None
        self.device = tools.device
        ids = [token_ids(tokenize, words) for words in PROMPTS]
        tokens = torch.tensor([numbers + [0] * (TOKENS - len(numbers)) for numbers in ids], device=self.device)
        with torch.inference_mode():
            self.texts = F.normalize(self.network.encode_text(tokens), dim=1)

    def __call__(self, item: dict) -> float:
        x = normalize(pictures.as_batch(pictures.load(item["generated"]), self.device), MEAN, STD)
        image = F.normalize(self.network.encode_image(x, pos_embedding=False), dim=1)
        return float((self.network.logit_scale.exp() * image @ self.texts.T).softmax(1)[0, 0])
