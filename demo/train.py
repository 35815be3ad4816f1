"""Trains the microworld's model: ``python3 atelier.py train-demo [--minutes N] [--device D] [--folder F] [--only STAGE]``.

Stages: pictures are rendered; the codec's linear maps are set and its decoder trained; the UNet learns to denoise in
v-prediction; a student learns to reach the end of the teacher's trajectory in one call (few-step consistency sampling);
readouts are trained for the measurements; everything is packed into one safetensors file. Each stage leaves its result
in the folder and is skipped when that is there, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..host import demo_model
from . import judges as judging
from .checkpoint import save
from .codec import Codec
from .portraits import caption_words, draw, sample_identities
from .styles import NAMES, TRAINED, VARIANTS, paint
from .text import INDEX, LENGTH, TextEncoder

log = logging.getLogger("portrait_atelier")

# Shares of --minutes. Rendering and packing take what they take.
SHARES = {"codec": .15, "unet": .58, "student": .22, "judges": .05}
SEED = 1000
WORDS = 20                                                        # most phrases a caption can hold before some are dropped


def render_pictures(folder: Path, identities: int, styles_each: int, device: str) -> None:
    """pictures.npy: uint8 [identities * styles_each, 3, 256, 256] with words.npy, the phrase numbers of full captions."""
    generator = torch.Generator().manual_seed(SEED)
    count, batch = identities * styles_each, 8
    pictures = np.lib.format.open_memmap(folder / "pictures.part", "w+", np.uint8, (count, 3, 256, 256))
    words = np.zeros((count, WORDS), np.int64)
    trained = torch.tensor([NAMES.index(name) for name in TRAINED])
    row = 0
    for _ in range(0, identities, batch):
        who = sample_identities(batch, generator)
        layers = draw({name: value.to(device) for name, value in who.items()})
        order = torch.rand(batch, len(trained), generator=generator)
        order[:, 0] -= .35                                        # more photos: they are the contents
        chosen = trained[order.argsort(1)[:, :styles_each]]
        for k in range(styles_each):
            variant = torch.randint(VARIANTS, (batch,), generator=generator)
            picture = paint(layers, chosen[:, k].to(device), variant.to(device), generator)
            pictures[row:row + batch] = (picture * 255).round().byte().cpu().numpy()
            for b in range(batch):
                phrases = ["portrait", NAMES[chosen[b, k]], *caption_words(who, b)]
                words[row + b, :len(phrases)] = [INDEX[phrase] for phrase in phrases]
            row += batch
    pictures.flush()
    np.save(folder / "words.npy", words)
    (folder / "pictures.part").rename(folder / "pictures.npy")


def batch_of(pictures, rows, device, crop=None):
    """uint8 rows of the memory map -> [B, 3, S, S] from -1 to 1; a crop keeps to the codec's grid."""
    taken = []
    for row in rows:
        y, x = (np.random.randint(0, (256 - crop) // 16 + 1, 2) * 16) if crop else (0, 0)
        taken.append(pictures[row][:, y:y + (crop or 256), x:x + (crop or 256)])
    return torch.from_numpy(np.stack(taken)).to(device).float() / 127.5 - 1


def train_codec(folder: Path, minutes: float, device: str) -> dict:
    """The linear maps from principal components, then the decoder on clean and on noisy latents."""
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    codec = Codec().to(device)
    codec.start(batch_of(pictures, range(0, len(pictures), max(1, len(pictures) // 1000)), device))
    optimizer = torch.optim.AdamW(codec.decoder.parameters(), 1.5e-3, betas=(.9, .98))
    for progress in clock(minutes):
        set_rate(optimizer, 1.5e-3 * (1 - .97 * progress))
        x = batch_of(pictures, np.random.randint(0, len(pictures), 16), device, crop=128)
        with torch.no_grad():
            z = codec.encode(x)
            z = z + torch.rand(len(z), 1, 1, 1, device=device) * .4 * torch.randn_like(z)
        error = codec.decode(z) - x
        slope = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        descend(optimizer, error.abs().mean() + .5 * slope, codec.decoder.parameters())
    return codec.state_dict()


def clock(minutes: float, every: float = 60.):
    """Yields the progress from 0 to 1 until the minutes are over, and logs it now and then."""
    start = told = time.monotonic()
    while (now := time.monotonic()) - start < minutes * 60:
        if now - told > every:
            told = now
            log.info("    %.0f of %.0f minutes", (now - start) / 60, minutes)
        yield (now - start) / (minutes * 60)


def set_rate(optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(optimizer, loss, parameters) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(parameters), 1.)
    optimizer.step()


def start_network(net) -> None:
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


def new_model(device):
    parts = torch.nn.ModuleDict({"net": demo_model.network(), "text": TextEncoder()})
    start_network(parts["net"])
    torch.nn.init.normal_(parts["text"].embedding.weight, std=.5)
    return parts.to(device)


def shorten(words: torch.Tensor) -> torch.Tensor:
    """Full captions [B, WORDS] -> prompts [B, LENGTH] as people write them: some phrases, sometimes none at all."""
    count = len(words)
    keep = torch.rand(words.shape) < torch.rand(count, 1) * 1.2
    keep[:, 0], keep[:, 1] = torch.rand(count) < .9, torch.rand(count) < .6          # "portrait", the style
    keep &= (torch.rand(count, 1) > .12) & (words > 0)                              # 12 % without any, for guidance
    order = torch.sort((~keep).int(), dim=1, stable=True).indices[:, :LENGTH]
    return (words * keep).gather(1, order)


def noised(net, z, t):
    """Equation (1): z_t and the noise, for latents z [B, ...] and timesteps t [B]."""
    a = net.alphas_cumprod.to(z.device)[t].view(-1, 1, 1, 1)
    noise = torch.randn_like(z)
    return a.sqrt() * z + (1 - a).sqrt() * noise, noise, a


def train_unet(folder: Path, minutes: float, device: str) -> dict:
    """v-prediction on latents and shortened captions; returns the averaged weights."""
    latents, words = torch.load(folder / "latents.pt", weights_only=True).values()
    parts = new_model(device)
    average = copy.deepcopy(parts).requires_grad_(False)
    parts.requires_grad_(True)
    optimizer = torch.optim.AdamW(parts.parameters(), 1.6e-3, betas=(.9, .99), weight_decay=1e-3)
    size = 64 if device == "cpu" else 256
    for step, progress in enumerate(clock(minutes)):
        set_rate(optimizer, 1.6e-3 * min(1, (step + 1) / 100) * (1 - .97 * progress))
        rows = torch.randint(len(latents), (size,))
        z, context = latents[rows].to(device).float(), parts["text"](shorten(words[rows]).to(device))
        t = ((torch.arange(size) + torch.rand(size)) / size * 1000).long().to(device)          # stratified
        z_t, noise, a = noised(parts["net"], z, t)
        v = parts["net"].predict_v(z_t, t.float(), context, transformer_options={})
        descend(optimizer, F.mse_loss(v, a.sqrt() * noise - (1 - a).sqrt() * z), parts.parameters())
        follow(average, parts, min(.998, (1 + step) / (10 + step)))
    return average.state_dict()


@torch.no_grad()
def follow(average, parts, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(parts.parameters()), 1 - decay)


GRID = list(range(19, 1000, 20))          # the 50 timesteps on which latent consistency models are distilled


@torch.no_grad()
def trajectory(teacher, z_t, start: int, context, empty, guidance: float, substeps: int):
    """DDIM from GRID[start] to the end -> points [(t, z_t)] on the way and the z0 they all lead to."""
    net, stops = teacher["net"], np.unique(np.linspace(0, start, substeps + 1).round().astype(int))[::-1]
    points = []
    for k, stop in enumerate(stops):
        t = torch.full((len(z_t),), GRID[stop], device=z_t.device)
        points.append((GRID[stop], z_t))
        v = net.predict_v(z_t, t.float(), context, transformer_options={})
        if guidance != 1:
            v0 = net.predict_v(z_t, t.float(), empty, transformer_options={})
            v = v0 + guidance * (v - v0)
        a = net.alphas_cumprod[GRID[stop]]
        z0, noise = a.sqrt() * z_t - (1 - a).sqrt() * v, (1 - a).sqrt() * z_t + a.sqrt() * v
        if k + 1 < len(stops):
            b = net.alphas_cumprod[GRID[stops[k + 1]]]
            z_t = b.sqrt() * z0 + (1 - b).sqrt() * noise
    return points, z0


def train_student(folder: Path, minutes: float, device: str) -> dict:
    """Consistency distillation with whole trajectories: from any point of one, the student predicts its end."""
    latents, words = torch.load(folder / "latents.pt", weights_only=True).values()
    teacher = new_model(device)
    teacher.load_state_dict(torch.load(folder / "unet.pt", weights_only=True))
    teacher.requires_grad_(False).eval()
    student = copy.deepcopy(teacher).requires_grad_(True)
    average = copy.deepcopy(teacher)
    optimizer = torch.optim.AdamW(student["net"].parameters(), 3e-4, betas=(.9, .99), weight_decay=0)
    size = 32 if device == "cpu" else 256
    empty = teacher["text"](torch.zeros(size, LENGTH, dtype=torch.long, device=device))
    for step, progress in enumerate(clock(minutes)):
        set_rate(optimizer, 3e-4 * min(1, (step + 1) / 20) * (1 - .95 * progress))
        rows = torch.randint(len(latents), (size,))
        context = teacher["text"](shorten(words[rows]).to(device)).detach()
        start = int(np.random.choice([len(GRID) - 1, np.random.randint(4, len(GRID))]))
        z_t, _, _ = noised(teacher["net"], latents[rows].to(device).float(), torch.full((size,), GRID[start], device=device))
        points, z0 = trajectory(teacher, z_t, start, context, empty, GUIDANCE, 2 + start // 6)
        loss = 0
        for t, point in [points[0], points[np.random.randint(len(points))]]:
            a = student["net"].alphas_cumprod[t]
            v = student["net"].predict_v(point, torch.full((size,), float(t), device=device), context, transformer_options={})
            error = a.sqrt() * point - (1 - a).sqrt() * v - z0
            loss = loss + (torch.sqrt(error ** 2 + 1e-3) - 1e-3 ** .5).mean()       # pseudo-Huber
        descend(optimizer, loss, student["net"].parameters())
        follow(average, student, min(.98, (1 + step) / (10 + step)))
    return average.state_dict()


GUIDANCE = 1.5      # of the teacher; guidance of the sampler comes on top


def train_judges(folder: Path, minutes: float, device: str, identities: int = 1600) -> dict:
    """Readouts on fresh renders of all styles, half of them through the codec; returns weights, style spread and held-out scores."""
    codec = Codec().to(device)
    codec.load_state_dict(torch.load(folder / "codec.pt", weights_only=True))
    codec.eval().requires_grad_(False)
    pictures, who, style = render_labelled(identities, codec, device, torch.Generator().manual_seed(SEED + 4000))
    judges = judging.Judges().to(device)
    optimizer = torch.optim.AdamW(judges.parameters(), 2e-3, weight_decay=1e-2)
    geometry, traits = judging.geometry_of(who), judging.traits_of(who)
    test = len(pictures) // 8
    for progress in clock(minutes):
        set_rate(optimizer, 2e-3 * (1 - .98 * progress))
        rows = torch.randint(test, len(pictures), (64,))
        x = pictures[rows].to(device).float() / 255
        answer = judges(torch.cat([x, spoil(x[:32])]))
        face = torch.cat([torch.ones(64), torch.zeros(32)]).to(device)
        loss = F.cross_entropy(answer["style"][:64], style[rows].to(device)) + F.mse_loss(answer["geometry"][:64], geometry[rows].to(device))
        loss = loss + F.binary_cross_entropy_with_logits(answer["traits"][:64], traits[rows].to(device)) + F.binary_cross_entropy_with_logits(answer["face"], face)
        descend(optimizer, loss, judges.parameters())
    judges.eval()
    with torch.no_grad():
        x = pictures[:test].to(device).float() / 255
        answer = judges(x)
        scores = {
            "style accuracy": (answer["style"].argmax(1).cpu() == style[:test]).float().mean(),
            "geometry error": (answer["geometry"].cpu().clamp(-3, 3) - geometry[:test]).pow(2).mean(1).sqrt().mean(),
            "trait accuracy": ((answer["traits"].cpu() > 0) == (traits[:test] > 0)).float().mean(),
            "faces found": (answer["face"] > 0).float().mean(),
            "false faces": (judges(spoil(x))["face"] > 0).float().mean()}
        spread = judging.style_features(x).std(0) + 1e-3
    return {"judges": judges.state_dict(), "spread": spread, "scores": {name: round(float(value), 4) for name, value in scores.items()}}


def render_labelled(identities, codec, device, generator, styles_each: int = 6):
    """uint8 pictures [N, 3, 128, 128] of all styles with identities and style numbers [N]; every other one went through the codec."""
    pictures, people, styles, batch = [], [], [], 8
    for start in range(0, identities, batch):
        who = sample_identities(batch, generator)
        layers = draw({name: value.to(device) for name, value in who.items()})
        chosen = torch.rand(batch, len(NAMES), generator=generator).argsort(1)[:, :styles_each]
        for k in range(styles_each):
            variant = torch.randint(VARIANTS, (batch,), generator=generator)
            picture = paint(layers, chosen[:, k].to(device), variant.to(device), generator)
            if (start // batch + k) % 2:
                with torch.no_grad():
                    z = codec.encode(picture * 2 - 1)
                    picture = (codec.decode(z + .2 * torch.randn_like(z)) * .5 + .5).clamp(0, 1)
            pictures.append((F.avg_pool2d(picture, 2) * 255).round().byte().cpu())
            people.append(who)
            styles.append(chosen[:, k])
    return torch.cat(pictures), {name: torch.cat([who[name] for who in people]) for name in people[0]}, torch.cat(styles)


def spoil(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures without a face: shuffled tiles, the lower or upper edge stretched, or another picture's blur."""
    count, _, size, _ = pictures.shape
    kind = torch.arange(count) % 3
    tiles = F.unfold(pictures, size // 4, stride=size // 4)
    shuffled = F.fold(tiles[:, :, torch.randperm(16)], (size, size), size // 4, stride=size // 4)
    edge = pictures[..., -size // 6:, :] if torch.rand(()) < .5 else pictures[..., :size // 6, :]
    stretched = F.interpolate(edge, (size, size), mode="bilinear")
    blurred = F.interpolate(F.interpolate(pictures, (5, 5), mode="area"), (size, size), mode="bicubic").clamp(0, 1)
    kind = kind.to(pictures.device).view(-1, 1, 1, 1)
    return torch.where(kind == 0, shuffled, torch.where(kind == 1, stretched, blurred))


def encode_pictures(folder: Path, device: str) -> None:
    codec = Codec().to(device)
    codec.load_state_dict(torch.load(folder / "codec.pt", weights_only=True))
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    with torch.no_grad():
        latents = torch.cat([codec.encode(batch_of(pictures, range(k, min(k + 64, len(pictures))), device)).half().cpu() for k in range(0, len(pictures), 64)])
    store(folder / "latents.pt", {"latents": latents, "words": torch.from_numpy(np.load(folder / "words.npy"))})


def store(path: Path, value) -> None:
    """Whole or not at all: an interrupted stage must not look finished."""
    torch.save(value, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="atelier.py train-demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=120, help="time for all stages that learn (default 120)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parents[1] / ".atelier" / "train-demo", help="where stages leave their results")
    parser.add_argument("--identities", type=int, default=6400, help="people to render, five styles each")
    parser.add_argument("--output", type=Path, help="the packed file (default: microworld.safetensors in --folder; copy it into demo/ when it is better)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    folder, device = args.folder, args.device
    folder.mkdir(parents=True, exist_ok=True)
    minutes = {name: share * args.minutes for name, share in SHARES.items()}

    def stage(result: str, work) -> None:
        if (folder / result).exists():
            log.info("%s is there", result)
            return
        log.info("making %s", result)
        made = work()
        if made is not None:
            store(folder / result, made)

    stage("pictures.npy", lambda: render_pictures(folder, args.identities, 5, device))
    stage("codec.pt", lambda: train_codec(folder, minutes["codec"], device))
    stage("latents.pt", lambda: encode_pictures(folder, device))
    stage("unet.pt", lambda: train_unet(folder, minutes["unet"], device))
    stage("student.pt", lambda: train_student(folder, minutes["student"], device))
    stage("judges.pt", lambda: train_judges(folder, minutes["judges"], device))
    pack(folder, args.output or folder / "microworld.safetensors", {"recipe": "demo/train.py", "minutes": str(args.minutes), "device": device, "seed": str(SEED)})


def pack(folder: Path, output: Path, metadata: dict[str, str]) -> None:
    student = torch.load(folder / "student.pt", weights_only=True)
    judged = torch.load(folder / "judges.pt", weights_only=True)
    part = lambda prefix: {name.removeprefix(prefix): value for name, value in student.items() if name.startswith(prefix)}
    save(output, part("net."), part("text."), torch.load(folder / "codec.pt", weights_only=True), judged["judges"], judged["spread"],
         {**metadata, "judges": json.dumps(judged["scores"])})
    log.info("wrote %s (%.1f MB); readouts on held-out renders: %s", output, output.stat().st_size / 1e6, judged["scores"])


if __name__ == "__main__":
    main()
