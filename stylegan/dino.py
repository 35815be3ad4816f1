"""The keys of DINO's last block, whose self-similarity is the structure of a picture: equation (3).

A vision transformer as its publishers share it, `dino_vitbase8_pretrain.pth` (fused query-key-value), or as
transformers writes it, before and since its fifth version. Sizes follow from the tensors' shapes; heads are 64 wide.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..identity.weights import read_tensors

MEAN, STD = (.485, .456, .406), (.229, .224, .225)      # of ImageNet
HEAD = 64
PAGE = "https://github.com/facebookresearch/dino"

# transformers' names -> the publishers'
NAMES = [(r"^embeddings\.cls_token$", "cls_token"), (r"^embeddings\.position_embeddings$", "pos_embed"),
         (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."), (r"^layernorm\.", "norm."),
         (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."), (r"\.layernorm_before\.", ".norm1."),
         (r"\.layernorm_after\.", ".norm2."), (r"\.intermediate\.dense\.", ".mlp.fc1."),
         (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."), (r"\.attention\.q_proj\.", ".attn.query."),
         (r"\.attention\.k_proj\.", ".attn.key."), (r"\.attention\.v_proj\.", ".attn.value."),
         (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."), (r"(\.\d+)\.output\.dense\.", r"\1.mlp.fc2.")]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1]
        return F.linear(x, self.qkv.weight[width:2 * width], self.qkv.bias[width:2 * width])


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Dino(nn.Module):
    """Pictures [B, 3, h, w] in [0, 1] -> keys of the last block [B, tokens, width], all heads, cls first.

    ViT-B/8: width 768, 12 blocks, 785 tokens of 224 x 224 pixels.
    """

    def __init__(self, width: int = 768, blocks: int = 12, patch: int = 8, grid: int = 28, hidden: int = 3072):
        super().__init__()
        self.side = patch * grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(Block(width, hidden, max(1, width // HEAD)) for _ in range(blocks))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(pictures, (self.side, self.side), mode="bilinear", align_corners=False)   # without antialias
        x = self.patch_embed["proj"]((x - self.mean) / self.std).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks[:-1]:
            x = block(x)
        return self.blocks[-1].attn.keys(self.blocks[-1].norm1(x))


def load(path: str | Path) -> Dino:
    """The model of a file, frozen; never by full unpickling. Raises ValueError."""
    return build(read_tensors(path), str(path))


def build(weights: dict[str, torch.Tensor], where: str = "this file") -> Dino:
    """From the tensors of any layout, bare or as the teacher of a whole training. Raises ValueError."""
    tensors = _published(weights)
    missing = [name for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight",
                                 "blocks.0.attn.qkv.weight") if name not in tensors]
    if missing:
        found = ", ".join(list(weights)[:5]) or "no tensors"
        raise ValueError(f"'{where}' is no DINO vision transformer: {missing[0]} is missing (it has {found}). "
                         f"Take dino_vitbase8_pretrain.pth from {PAGE}.")
    hidden, width = tensors["blocks.0.mlp.fc1.weight"].shape
    patch, grid = tensors["patch_embed.proj.weight"].shape[-1], round((tensors["pos_embed"].shape[1] - 1) ** .5)
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    model = Dino(width, blocks, patch, grid, hidden)
    wanted = model.state_dict()
    wrong = [name for name in wanted if name not in tensors or tensors[name].shape != wanted[name].shape]
    if wrong:
        raise ValueError(f"'{where}' is no whole DINO vision transformer: {wrong[0]} is missing or of another shape. "
                         f"Take dino_vitbase8_pretrain.pth from {PAGE}.")
    model.load_state_dict({name: tensors[name] for name in wanted})
    return model.requires_grad_(False).eval()


def _published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The publishers' names, without what wraps them, query, key and value fused."""
    heads = [re.sub(r"(embeddings\.)?cls_token$", "", name) for name in weights if name.endswith("cls_token")]
    head = max(heads, key=lambda head: head.startswith("teacher."), default="")      # a training file has a student too
    named = {}
    for name, value in weights.items():
        if not name.startswith(head):
            continue
        name = name.removeprefix(head)
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        named[name] = value
    for name in [name for name in named if ".attn.query." in name]:
        parts = [named.pop(name.replace("query", part), None) for part in ("query", "key", "value")]
        if all(part is not None for part in parts):
            named[name.replace("query", "qkv")] = torch.cat(parts)
    return named
