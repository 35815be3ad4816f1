"""CLIP-IQA: does CLIP call it a good photo? (Wang, Chan, Loy, 2023)"""

from __future__ import annotations

import torch

from . import pictures
from .clip_model import MEAN, STD, token_ids, tokenizer
from .clip_resnet import load

PROMPTS = ("Good photo.", "Bad photo.")


class ClipIqa:
    """Share of "Good photo." against "Bad photo.", from 0 to 1; ZePo's column CLIP-IQA. The picture keeps its size."""

    name, needs, better = "clip_iqa", ("generated",), "up"

    def __init__(self, tools):
        path = tools.find(self.name, "resnet50_clip.openai/open_clip_model.safetensors",
                          "resnet50_clip.openai/open_clip_pytorch_model.bin")
        self.device, self.network, tokenize = tools.device, load(path, tools.device), tokenizer()
        with torch.inference_mode():
            self.texts = torch.cat([self.network.text(torch.tensor([token_ids(tokenize, words)], device=self.device))
                                    for words in PROMPTS])

    def __call__(self, item: dict) -> float:
        x = pictures.as_batch(pictures.load(item["generated"]), self.device)
        x = (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)
        logits = self.network.logit_scale.exp() * self.network.image(x) @ self.texts.T
        return float(logits.softmax(1)[0, 0])
