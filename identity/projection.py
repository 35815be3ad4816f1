"""The network in a FaceID file that turns a face into text-like tokens (FastFace's identity branch, IP-Adapter FaceID)."""

import torch
from torch import nn
from torch.nn import functional

HEAD = 64


class Linear(nn.Linear):
    """Its weights stay as they are in the file, half precision say, and are converted as they are used."""

    def forward(self, x):
        return functional.linear(x, self.weight.to(x), None if self.bias is None else self.bias.to(x))


class LayerNorm(nn.LayerNorm):
    """As `Linear`."""

    def forward(self, x):
        return functional.layer_norm(x, self.normalized_shape, self.weight.to(x), self.bias.to(x), self.eps)


class FaceAttention(nn.Module):
    """The face tokens ask the picture's tokens and themselves."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.heads = max(1, inner // HEAD)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.to_q = Linear(width, inner, bias=False)
        self.to_kv = Linear(width, 2 * inner, bias=False)
        self.to_out = Linear(inner, width, bias=False)

    def forward(self, picture, tokens):
        tokens = self.norm2(tokens)
        asked = self.to_kv(torch.cat([self.norm1(picture), tokens], 1)).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(tokens), *asked))
        return self.to_out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FaceResampler(nn.Module):
    """FaceID-Plus: face tokens [B, T, C] refined by CLIP's states of the face [B, tokens, clip_width]."""

    def __init__(self, width: int, inner: int, clip_width: int, depth: int):
        super().__init__()
        self.proj_in = Linear(clip_width, width)
        self.layers = nn.ModuleList(
            nn.ModuleList([FaceAttention(width, inner),
                           nn.Sequential(LayerNorm(width), Linear(width, 4 * width, bias=False), nn.GELU(), Linear(4 * width, width, bias=False))])
            for _ in range(depth))
        self.proj_out = Linear(width, width)
        self.norm_out = LayerNorm(width)

    def forward(self, tokens, clip):
        picture = self.proj_in(clip)
        for attention, feed_forward in self.layers:
            tokens = tokens + attention(picture, tokens)
            tokens = tokens + feed_forward(tokens)
        return self.norm_out(self.proj_out(tokens))


class FaceProjection(nn.Module):
    """Face embedding to T tokens of the text's width C; all sizes come from the file's tensors.

    FaceID:         x = LayerNorm(Linear(GELU(Linear(embedding))))
    FaceID-Plus v1: out = Resampler(x, clip)
    FaceID-Plus v2: x + shortcut * out
    """

    def __init__(self, tensors: dict[str, torch.Tensor], version: str = "v1"):
        """tensors: those of the file's `image_proj`. Raises KeyError or RuntimeError when they are not this network's."""
        super().__init__()
        self.version = version
        self.width = len(tensors["norm.weight"])
        hidden, self.embedding_width = tensors["proj.0.weight"].shape
        self.tokens = len(tensors["proj.2.weight"]) // self.width
        self.plus = any(name.startswith("perceiver_resampler.") for name in tensors)
        with torch.device("meta"):
            self.proj = nn.Sequential(Linear(self.embedding_width, hidden), nn.GELU(), Linear(hidden, self.tokens * self.width))
            self.norm = LayerNorm(self.width)
            if self.plus:
                depth = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("perceiver_resampler.layers."))
                self.perceiver_resampler = FaceResampler(self.width, len(tensors["perceiver_resampler.layers.0.0.to_q.weight"]),
                                                         tensors["perceiver_resampler.proj_in.weight"].shape[1], depth)
        self.load_state_dict(tensors, assign=True)
        self.requires_grad_(False)

    @property
    def clip_width(self) -> int | None:
        """Width of the CLIP states it needs; None for plain FaceID."""
        return self.perceiver_resampler.proj_in.in_features if self.plus else None

    def forward(self, embedding: torch.Tensor, clip: torch.Tensor | None = None, shortcut: float = 1.0) -> torch.Tensor:
        """embedding: [B, embedding width] of length 1; clip: [B, tokens, clip width], FaceID-Plus only. Returns [B, T, C]."""
        x = self.norm(self.proj(embedding).unflatten(-1, (self.tokens, self.width)))
        if not self.plus:
            return x
        out = self.perceiver_resampler(x, clip)
        return x + shortcut * out if self.version == "v2" else out
