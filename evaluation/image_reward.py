"""ImageReward: do people like the picture for this prompt? (Xu and others, 2023)"""

from __future__ import annotations

import re

import torch.nn.functional as F
from torchvision.transforms.functional import normalize

from . import pictures
from .aesthetic import linear_layers
from .clip_model import MEAN, STD, cut
from .errors import EvaluationError
from .weights import fill, read_tensors

SCORES_MEAN, SCORES_STD = 0.16717362830052426, 1.0333394966054072  # of the published model's raw scores
TOKENS, HEAD = 35, 64
# BLIP's names -> those of transformers
NAMES = ((r"^cls_token$", "embeddings.class_embedding"), (r"^pos_embed$", "embeddings.position_embedding"),
         (r"^patch_embed\.proj\.", "embeddings.patch_embedding."), (r"^blocks\.", "encoder.layers."),
         (r"\.attn\.qkv\.", ".self_attn.qkv."),
         (r"\.attn\.proj\.", ".self_attn.projection."),
         (r"\.norm([12])\.", r".layer_norm\1."), (r"^norm\.", "post_layernorm."))


class ImageReward:
    """About -2 to 2, 0 for an average picture of its training; FastFace's column IR (table 2)."""

    name, needs, better = "image_reward", ("generated", "prompt"), "up"

    def __init__(self, tools):
        from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel
        path = tools.find(self.name, "imagereward/ImageReward.pt")
        words = tools.find(self.name, "imagereward/vocab.txt")
        tensors, self.device = read_tensors(path), tools.device
        vision, text, mlp = (
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            for prefix in ("blip.visual_encoder.", "blip.text_encoder.", "mlp."))
        for pattern, name in NAMES:
            vision = {re.sub(pattern, name, key): value for key, value in vision.items()}
        text.pop("embeddings.position_ids", None)  # 0, 1, 2 ...
        try:
            width, _, _, patch = vision["embeddings.patch_embedding.weight"].shape
            self.side = patch * round((vision["embeddings.position_embedding"].shape[1] - 1) ** .5)
            seeing = BlipVisionConfig(
                hidden_size=width, intermediate_size=len(vision["encoder.layers.0.mlp.fc1.bias"]),
                num_attention_heads=max(1, width // HEAD), num_hidden_layers=count(vision, "encoder.layers."),
                image_size=self.side, patch_size=patch, layer_norm_eps=1e-6)
            vocabulary, wide = text["embeddings.word_embeddings.weight"].shape
            reading = BlipTextConfig(
                vocab_size=vocabulary, hidden_size=wide, encoder_hidden_size=width,
                num_attention_heads=max(1, wide // HEAD), num_hidden_layers=count(text, "encoder.layer."),
                intermediate_size=len(text["encoder.layer.0.intermediate.dense.bias"]),
                max_position_embeddings=len(text["embeddings.position_embeddings.weight"]))
        except (KeyError, ValueError) as error:
            raise EvaluationError(f"{path} is no ImageReward: {error} is missing") from None
        networks = BlipVisionModel(seeing), BlipTextModel(reading, add_pooling_layer=False)
        self.vision, self.text = (fill(network, part, path, self.device)
                                  for network, part in zip(networks, (vision, text)))
        self.layers = linear_layers(mlp, wide, path, self.device)
        self.tokenize = BertTokenizer(str(words))

    def __call__(self, item: dict) -> float:
        pixels = normalize(cut(pictures.load(item["generated"]), self.side)[None].to(self.device), MEAN, STD)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        tokens = self.tokenize(item["prompt"], truncation=True, max_length=TOKENS, return_tensors="pt").to(self.device)
        x = self.text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=seen,
                      encoder_attention_mask=seen.new_ones(seen.shape[:2])).last_hidden_state[0, 0]
        for weight, bias in self.layers:
            x = F.linear(x, weight, bias)
        return (float(x) - SCORES_MEAN) / SCORES_STD


def count(tensors: dict, prefix: str) -> int:
    return len({key[len(prefix):].split(".")[0] for key in tensors if key.startswith(prefix)})
