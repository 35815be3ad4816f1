"""CLIP with a ResNet-50, as CLIP-IQA uses it: without the position embedding of its pictures.

transformers has CLIP's vision transformers only. The names of the modules are those of OpenAI's files; all sizes are
read from the file.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from .errors import EvaluationError
from .weights import fill, read_tensors


class Block(nn.Module):
    """A bottleneck that halves its picture by averaging and not by a stride of its convolutions."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.stride = stride
        for number, shape in enumerate(((inputs, width, 1), (width, width, 3), (width, 4 * width, 1)), 1):
            self.add_module(f"conv{number}", nn.Conv2d(*shape, padding=shape[2] // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(shape[1]))
        narrow = stride == 1 and inputs == 4 * width
        self.downsample = None if narrow else nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        y = self.bn3(self.conv3(F.avg_pool2d(y, self.stride)))
        return (y + (x if self.downsample is None else self.downsample(F.avg_pool2d(x, self.stride)))).relu()


class AttentionPool(nn.Module):
    """The mean of all places asks the mean and the places. No position embedding, so any size of picture will do."""

    def __init__(self, width: int, outputs: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, outputs)

    def forward(self, x):
        places = x.flatten(2).transpose(1, 2)
        mean = places.mean(1, keepdim=True)
        tokens = torch.cat([mean, places], 1)
        q, k, v = (layer(y).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for layer, y in ((self.q_proj, mean), (self.k_proj, tokens), (self.v_proj, tokens)))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))[:, 0]


class Visual(nn.Module):
    """Pictures [B, 3, H, W], normalised -> [B, D]."""

    def __init__(self, width: int, blocks: list[int], outputs: int):
        super().__init__()
        for number, shape in enumerate(((3, width // 2), (width // 2, width // 2), (width // 2, width)), 1):
            self.add_module(f"conv{number}", nn.Conv2d(*shape, 3, stride=2 if number == 1 else 1, padding=1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(shape[1]))
        inputs = width
        for number, count in enumerate(blocks):
            stage = [Block(inputs if i == 0 else 4 * width, width, 2 if number and i == 0 else 1) for i in range(count)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*stage))
            inputs, width = 4 * width, 2 * width
        self.attnpool = AttentionPool(inputs, outputs, heads=inputs // 64)

    def forward(self, x):
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = norm(conv(x)).relu()
        x = F.avg_pool2d(x, 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.attnpool(x)


class TextBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x):
        y, future = self.ln_1(x), torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        x = x + self.attn(y, y, y, attn_mask=future, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class ClipResNet(nn.Module):
    """Both halves of CLIP. `image` and `text` give embeddings of length 1."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()

        def count(prefix):
            return len({key[len(prefix):].split(".")[0] for key in tensors if key.startswith(prefix)})

        words, width = tensors["token_embedding.weight"].shape
        outputs = tensors["text_projection"].shape[1]
        blocks = [count(f"visual.layer{number}.") for number in (1, 2, 3, 4)]
        self.visual = Visual(tensors["visual.layer1.0.conv1.weight"].shape[0], blocks, outputs)
        self.token_embedding = nn.Embedding(words, width)
        self.positional_embedding = nn.Parameter(torch.empty(len(tensors["positional_embedding"]), width))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(TextBlock(width) for _ in range(count("transformer.resblocks.")))})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, outputs))
        self.logit_scale = nn.Parameter(torch.empty(()))

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.visual(pixels), dim=1)

    def text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token numbers [B, N], the last of each being the end -> [B, D]."""
        x = self.token_embedding(tokens) + self.positional_embedding[:tokens.shape[1]]
        for block in self.transformer["resblocks"]:
            x = block(x)
        return F.normalize(self.ln_final(x[:, -1]) @ self.text_projection, dim=1)


def load(path: Path, device) -> ClipResNet:
    """Raises EvaluationError where the file holds no CLIP of this kind."""
    # The position embedding is the one that CLIP-IQA leaves out; the last three are notes in OpenAI's own files.
    left_out = {"visual.attnpool.positional_embedding", "input_resolution", "context_length", "vocab_size"}
    tensors = {key: value for key, value in read_tensors(path).items() if key not in left_out}
    try:
        with torch.device("meta"):
            network = ClipResNet(tensors)
    except (KeyError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{path} is no CLIP with a ResNet: {type(error).__name__} {error}") from None
    return fill(network, tensors, path, device)
