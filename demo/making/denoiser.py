"""The teacher: the UNet learns to predict v from noised latents and shortened captions."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from ...host import demo_model
from ...training.stage import Stage, descend, follow, half, lay_out, processes, store, warm
from ..codec import CHANNELS, Codec
from ..text import LENGTH, TextEncoder
from .muon import Muon
from .pictures import batch_of, held_out

IMAGES, RATE, FALL = 120_000, .02, .3      # pictures, rate, and the last share of the steps in which it falls to nothing
WIDTH = 96               # channels of the UNet: 16 million weights
SCALE = 1.15             # of the latents: denoise 0.5 is to leave an outline of about .9


def start_network(net: torch.nn.Module) -> None:
    """Torch's default, with residual branches and the last layer starting at zero."""
    for module in net.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            torch.nn.init.kaiming_uniform_(module.weight, a=5 ** .5)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)
    for module in net.modules():
        if type(module).__name__ == "ResBlock":
            torch.nn.init.zeros_(module.out_layers[3].weight)
        if type(module).__name__ == "SpatialTransformer":
            torch.nn.init.zeros_(module.proj_out.weight)
    torch.nn.init.zeros_(net.out[2].weight)


def new_model(device: str) -> torch.nn.ModuleDict:
    """The UNet ("net") and the text encoder ("text"), ready to train."""
    parts = torch.nn.ModuleDict({"net": demo_model.network(CHANNELS, WIDTH), "text": TextEncoder()})
    start_network(parts["net"])
    torch.nn.init.normal_(parts["text"].embedding.weight, std=.5)
    for module in parts.modules():
        module.comfy_cast_weights = False       # autocast does that here, once for each weight
    return lay_out(parts, device)


def attention(usual, q, k, v, heads: int, *args, **kwargs) -> torch.Tensor:
    """Two plain products and a softmax: on CPUs in bfloat16 the fused attention's way back took 41 % of a step."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu":
        seen = (q @ k.transpose(-1, -2) * q.shape[-1] ** -.5).softmax(-1).to(v.dtype) @ v
    else:
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return seen.transpose(1, 2).flatten(2)


FAST = {"optimized_attention_override": attention}


def predict(net, z_t: torch.Tensor, t, context: torch.Tensor, options: dict = FAST) -> torch.Tensor:
    """v of the network at timesteps t: an int, or [B]."""
    t = torch.as_tensor(t, device=z_t.device).float().expand(len(z_t))
    z_t = z_t.contiguous(memory_format=torch.channels_last)
    with half(z_t.device.type):
        return net.predict_v(z_t, t, context, transformer_options=options).float()


def noised(net, z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation (1): z_t and alpha_bar for latents z [B, ...] and timesteps t [B].

    From t = 980 on there is only noise, as at the start of sampling; the schedule's own last steps still whisper the
    picture's mean colour, which a sampler has not got.
    """
    a = net.alphas_cumprod.to(z.device)[t].view(-1, 1, 1, 1)
    noise = torch.randn_like(z)
    return torch.where((t >= 980).view(-1, 1, 1, 1), noise, a.sqrt() * z + (1 - a).sqrt() * noise), a


def v_target(z_t: torch.Tensor, z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """What the network is to say at z_t, that leads to z."""
    return (a.sqrt() * z_t - z) / (1 - a).sqrt()


def v_loss(predicted: torch.Tensor, v: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Squared error of predicted v at alpha_bar a; divided by the spread of v, so every timestep weighs alike."""
    return ((predicted - v) ** 2 / (a + (1 - a) * SCALE ** 2)).mean()


def timesteps(size: int) -> torch.Tensor:
    """Half of them over the whole schedule, half where stylization samples and extracts; stratified."""
    spread = lambda count: (torch.arange(count) + torch.rand(count)) / count
    return torch.cat([1010 * spread(size // 2), 60 + 460 * spread(size - size // 2)]).long().clamp(0, 999)


def shorten(words: torch.Tensor) -> torch.Tensor:
    """Full captions [B, WORDS] -> prompts [B, LENGTH] as people write them: some phrases, sometimes none at all."""
    count = len(words)
    keep = torch.rand(words.shape) < torch.rand(count, 1) * 1.2
    keep[:, 0], keep[:, 1] = torch.rand(count) < .9, torch.rand(count) < .6          # "portrait", the style
    keep &= (torch.rand(count, 1) > .12) & (words > 0)                              # 12 % without any, for guidance
    order = torch.sort((~keep).int(), dim=1, stable=True).indices[:, :LENGTH]
    return (words * keep).gather(1, order)


@torch.no_grad()
def encode_pictures(folder: Path, device: str) -> None:
    """latents.pt: float16 latents, of spread 1, of all pictures but the held-out ones; the words of their captions."""
    codec = lay_out(Codec(), device).eval()
    codec.load_state_dict(torch.load(folder / "codec.pt", weights_only=True))
    pictures, words = np.load(folder / "pictures.npy", mmap_mode="r"), np.load(folder / "words.npy")
    first, latents = held_out(len(pictures)), []
    with half(device):
        for k in range(first, len(pictures), 64):
            latents.append(codec.encode(batch_of(pictures, range(k, min(k + 64, len(pictures))), device)).half().cpu())
    store(folder / "latents.pt", {"latents": torch.cat(latents), "words": torch.from_numpy(words[first:])})


class Examples:
    """Batches of latents (of spread SCALE) and words."""

    def __init__(self, folder: Path, device: str):
        latents, self.words = torch.load(folder / "latents.pt", weights_only=True).values()
        self.latents, self.device = latents.to(device), device

    def draw(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.at(torch.randint(len(self.latents), (size,)))

    def at(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.latents[rows.to(self.device)].float() * SCALE, self.words[rows]


def train(folder: Path, share: float, device: str) -> dict:
    """v-prediction on latents and shortened captions -> the averaged weights after ``share`` of the full training."""
    examples = Examples(folder, device)
    torch.manual_seed(12)
    parts = new_model(device)
    average = copy.deepcopy(parts).requires_grad_(False)
    optimizer = Muon(parts["net"].parameters(), RATE, parts["text"].parameters())
    size = (64 if device == "cpu" else 256) // processes()
    steps = int(IMAGES * share / size / processes())
    stage = Stage(folder / "unet.progress", steps, parts=parts, average=average, optimizer=optimizer)
    for step, progress in stage:
        z, words = examples.draw(size)
        context = parts["text"](shorten(words).to(device))
        t = timesteps(size).to(device)
        z_t, a = noised(parts["net"], z, t)
        loss = v_loss(predict(parts["net"], z_t, t, context), v_target(z_t, z, a), a)
        stage.tell(loss)
        descend(optimizer, loss, RATE * warm(step) * min(1, (1 - .99 * progress) / FALL))
        follow(average, parts, step, .998)
    return average.state_dict()
