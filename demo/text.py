"""The microworld's text encoder: a vocabulary of phrases and one embedding per phrase."""

from __future__ import annotations

import logging
import re

import torch

from .portraits import BACKGROUNDS, EYES, FLAGS, HAIR_COLORS, HAIR_CUTS, HATS, SCENES, SHIRTS, SKINS
from .styles import NAMES, TRAINED

logger = logging.getLogger("portrait_atelier")

LENGTH, WIDTH = 16, 64                      # tokens of a prompt, channels of a token
SYNONYMS = {"head": "portrait", "face": "portrait", "person": "portrait", "photograph": "photo", "comic": "cartoon", "drawing": "ink"}
PHRASES = ["", "portrait", *NAMES]          # 0 is padding; the held-out styles have a word that was never trained
PHRASES += [f"{name} {noun}" for noun, names in (("skin", SKINS), ("hair", HAIR_COLORS), ("background", BACKGROUNDS), ("shirt", SHIRTS), ("eyes", EYES)) for name in names]
PHRASES += ["bald", *(f"{cut} hair" for cut in HAIR_CUTS if cut != "bald"), *HATS[1:], *SCENES[1:], *(flag.replace("_", " ") for flag in FLAGS), "smile", "frown"]
PHRASES += ["far"]
INDEX = {phrase: number for number, phrase in enumerate(PHRASES)}


def tokenize(prompt: str) -> list[int]:
    """A prompt -> at most LENGTH phrase numbers. Phrases of two words win over single words; unknown words are ignored with a log line."""
    words = [SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+", prompt.lower())]
    tokens, unknown, position = [], [], 0
    while position < len(words):
        pair = " ".join(words[position:position + 2])
        if pair in INDEX:
            tokens.append(INDEX[pair])
            position += 2
            continue
        tokens.append(INDEX[words[position]]) if words[position] in INDEX else unknown.append(words[position])
        position += 1
    if unknown:
        logger.info("The demo model's text encoder ignores: %s. It knows: %s", ", ".join(unknown), ", ".join(PHRASES[1:]))
    return tokens[:LENGTH]


class TextEncoder(torch.nn.Module):
    """Phrase numbers [B, LENGTH] -> context [B, LENGTH, WIDTH] for the UNet's cross-attention."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(len(PHRASES), WIDTH)

    def forward(self, tokens):
        return self.embedding(tokens)

    def encode(self, prompt: str) -> torch.Tensor:
        """A prompt -> context [1, LENGTH, WIDTH]."""
        tokens = tokenize(prompt)
        return self(torch.tensor([tokens + [0] * (LENGTH - len(tokens))], device=self.embedding.weight.device))
