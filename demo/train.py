"""Trains the microworld's model: ``python3 atelier.py train-demo [--minutes N] [--device D] [--folder F]``.

Stages: pictures are rendered; the codec's linear maps are set; the UNet learns to denoise in v-prediction; a student
learns to reach the end of the teacher's trajectory in one call (few-step consistency sampling); the codec's decoder
learns to restore pictures; readouts are trained for the measurements; everything is packed into one safetensors file. Each stage leaves its result
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
import torch.distributed as dist
import torch.nn.functional as F
from comfy.ldm.modules.attention import attention_pytorch

from ..host import demo_model
from . import judges as judging
from .checkpoint import load, save
from .codec import Codec
from .portraits import caption_words, draw, sample_identities
from .styles import NAMES, TRAINED, VARIANTS, paint
from .text import INDEX, LENGTH, TextEncoder

log = logging.getLogger("portrait_atelier")

# Shares of --minutes. Rendering and packing take what they take.
SHARES = {"unet": .5, "student": .25, "decoder": .2, "judges": .05}
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


def batch_of(pictures, rows, device):
    """uint8 rows of the memory map -> [B, 3, 256, 256] from -1 to 1."""
    return torch.from_numpy(np.stack([pictures[row] for row in rows])).to(device).float() / 127.5 - 1


def start_codec(folder: Path, device: str, start: Path | None = None) -> dict:
    """The codec with its linear maps in place, those of a packed file if given; its network is trained last (``train_decoder``)."""
    if start is not None:
        return load(start).codec.state_dict()
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    codec = Codec().to(device)
    codec.start(batch_of(pictures, range(0, len(pictures), max(1, len(pictures) // 1000)), device))
    return codec.state_dict()


def clock(minutes: float, every: float = 60.):
    """Yields the progress from 0 to 1 until the minutes are over, the same in all processes, and logs it now and then."""
    start = told = time.monotonic()
    while True:
        now = time.monotonic()
        progress = torch.tensor((now - start) / (minutes * 60))
        if dist.is_initialized():
            dist.broadcast(progress, 0)
        if progress >= 1:
            return
        if now - told > every:
            told = now
            log.info("    %.0f of %.0f minutes", (now - start) / 60, minutes)
        yield float(progress)


def set_rate(optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(optimizer, loss, parameters) -> None:
    """One step down the gradient, averaged over all processes."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer.zero_grad()
    loss.backward()
    if dist.is_initialized():
        gradient = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters])
        dist.all_reduce(gradient)
        for parameter, part in zip(parameters, gradient.div_(dist.get_world_size()).split([p.numel() for p in parameters])):
            parameter.grad = part.view_as(parameter)
    torch.nn.utils.clip_grad_norm_(parameters, 1.)
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


# The host's default attention for CPUs saves memory at the cost of speed.
FAST = {"optimized_attention_override": lambda usual, *args, **kwargs: attention_pytorch(*args, **kwargs)}


def predict(net, z_t, t, context):
    """v of the network at timesteps t: an int, or [B]."""
    t = torch.as_tensor(t, device=z_t.device).float().expand(len(z_t))
    return net.predict_v(z_t, t, context, transformer_options=FAST)


def noised(net, z, t):
    """Equation (1): z_t and alpha_bar for latents z [B, ...] and timesteps t [B].

    From t = 980 on there is only noise, as at the start of sampling; the schedule's own last steps still whisper the
    picture's mean colour, which a sampler has not got.
    """
    a = net.alphas_cumprod.to(z.device)[t].view(-1, 1, 1, 1)
    noise = torch.randn_like(z)
    return torch.where((t >= 980).view(-1, 1, 1, 1), noise, a.sqrt() * z + (1 - a).sqrt() * noise), a


def timesteps(size: int) -> torch.Tensor:
    """Half of them over the whole schedule, half where stylization samples and extracts; stratified."""
    spread = lambda count: (torch.arange(count) + torch.rand(count)) / count
    return torch.cat([1010 * spread(size // 2), 60 + 460 * spread(size - size // 2)]).long().clamp(0, 999)


def channel_weights(folder: Path) -> torch.Tensor:
    """[1, 16, 1, 1], mean 1: how much each latent channel moves the picture."""
    gain = 1 / torch.load(folder / "codec.pt", weights_only=True)["project.weight"].flatten(1).norm(dim=1)
    return (gain / gain.mean()).view(1, -1, 1, 1)


def v_loss(net, z_t, t, context, v, a, weights):
    """Squared error of predicted v at timesteps t with alpha_bar a; divided by the spread of v, so every timestep weighs alike."""
    return ((predict(net, z_t, t, context) - v) ** 2 * weights / (a + (1 - a) * demo_model.SCALE ** 2)).mean()


def train_unet(folder: Path, minutes: float, device: str, start: Path | None = None) -> dict:
    """v-prediction on latents and shortened captions, from nothing or from a packed file; returns the averaged weights."""
    latents, words = torch.load(folder / "latents.pt", weights_only=True).values()
    parts = new_model(device)
    if start is not None:
        world = load(start)
        parts["net"].load_state_dict(world.unet)
        parts["text"].load_state_dict(world.text.state_dict())
    average = copy.deepcopy(parts).requires_grad_(False)
    parts.requires_grad_(True)
    optimizer = torch.optim.AdamW(parts.parameters(), 1.6e-3, betas=(.9, .99), weight_decay=1e-3)
    size, weights = 32 if device == "cpu" else 256, channel_weights(folder).to(device)
    for step, progress in enumerate(clock(minutes)):
        set_rate(optimizer, 1.6e-3 * min(1, (step + 1) / 100) * (1 - .97 * progress))
        rows = torch.randint(len(latents), (size,))
        z, context = latents[rows].to(device).float() * demo_model.SCALE, parts["text"](shorten(words[rows]).to(device))
        t = timesteps(size).to(device)
        z_t, a = noised(parts["net"], z, t)
        descend(optimizer, v_loss(parts["net"], z_t, t, context, (a.sqrt() * z_t - z) / (1 - a).sqrt(), a, weights), parts.parameters())
        follow(average, parts, min(.998, (1 + step) / (10 + step)))
    return average.state_dict()


@torch.no_grad()
def follow(average, parts, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(parts.parameters()), 1 - decay)


HIGH = 600            # above, a picture is decided: the student learns whole trajectories; below, it goes on learning from the data
STARTS = (999, 999, 759)      # where the four LCM steps begin and go on, beside any other timestep above HIGH


@torch.no_grad()
def trajectory(teacher, z_t, start: int, context, empty, guidance):
    """From z_t at timestep `start` to the end -> points [(t, z_t)] on the way and the z0 they all lead to.

    DPM-Solver++ (2M) with the teacher's predictions, guided by `guidance` [B, 1, 1, 1]: in so few steps the first-order DDIM
    ends in a blur.
    """
    net, count = teacher["net"], max(2, -(-9 * start // 999))
    stops = np.linspace(start, max(19, start / count * .4), count).round().astype(int).tolist()
    points, before, earlier = [], None, None
    for k, t in enumerate(stops):
        points.append((t, z_t))
        v0, v = predict(net, torch.cat([z_t, z_t]), t, torch.cat([empty.expand_as(context), context])).chunk(2)
        a = net.alphas_cumprod[t]
        z0 = a.sqrt() * z_t - (1 - a).sqrt() * (v0 + guidance * (v - v0))
        if k + 1 == len(stops):
            return points, z0
        b = net.alphas_cumprod[stops[k + 1]]
        h = ((b / (1 - b)).log() - (a / (1 - a)).log()) / 2
        first_order = before is None or k + 2 == len(stops)
        target = z0 if first_order else (1 + h / (2 * earlier)) * z0 - h / (2 * earlier) * before
        z_t = ((1 - b) / (1 - a)).sqrt() * z_t - b.sqrt() * torch.expm1(-h) * target
        before, earlier = z0, h


def train_student(folder: Path, minutes: float, device: str) -> dict:
    """Consistency distillation with whole trajectories: from any point above HIGH, the student predicts where the teacher ends.

    Below HIGH it keeps learning from pictures. Trajectories lose popart's dots, which no later step puts back, so
    there the student keeps the teacher's own prediction.
    """
    latents, words = torch.load(folder / "latents.pt", weights_only=True).values()
    teacher = new_model(device)
    teacher.load_state_dict(torch.load(folder / "unet.pt", weights_only=True))
    teacher.requires_grad_(False).eval()
    student = copy.deepcopy(teacher)
    student["net"].requires_grad_(True)
    average = copy.deepcopy(teacher)
    net, weights = student["net"], channel_weights(folder).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-4, betas=(.9, .99), weight_decay=0)
    size = 32 if device == "cpu" else 256
    followed = 3 * size // 8                      # of the batch; trajectories are dear
    empty = teacher["text"](torch.zeros(1, LENGTH, dtype=torch.long, device=device))
    style_words = torch.tensor([INDEX[name] for name in TRAINED])
    for step, progress in enumerate(clock(minutes)):
        set_rate(optimizer, 3e-4 * min(1, (step + 1) / 30) * (1 - .97 * progress))
        rows = torch.randint(len(latents), (size,))
        z = latents[rows].to(device).float() * demo_model.SCALE
        prompts = shorten(words[rows])
        context = teacher["text"](prompts.to(device))
        told = prompts[:followed, :, None] == style_words
        guidance = torch.where(told.flatten(1).any(1), GUIDANCE, 1.).view(-1, 1, 1, 1).to(device)
        kept = (prompts[:followed] == INDEX["popart"]).any(1).view(-1, 1, 1, 1).to(device)
        start = int(np.random.choice([*STARTS, np.random.randint(HIGH, 1000)]))
        z_t, _ = noised(net, z[:followed], torch.full((followed,), start, device=device))
        points, end = trajectory(teacher, z_t, start, context[:followed], empty, guidance)
        later = [point for point in points[1:] if point[0] >= HIGH] or points[:1]
        loss = 0
        for t, point in (points[0], later[np.random.randint(len(later))]):
            a = net.alphas_cumprod[t]
            with torch.no_grad():
                v = torch.where(kept, predict(teacher["net"], point, t, context[:followed]), (a.sqrt() * point - end) / (1 - a).sqrt())
            loss = loss + .5 * v_loss(net, point, t, context[:followed], v, a, weights)
        count = size - followed
        t = (20 + HIGH * (torch.arange(count) + torch.rand(count)) / count).long().to(device)
        z_t, a = noised(net, z[followed:], t)
        loss = loss + v_loss(net, z_t, t, context[followed:], (a.sqrt() * z_t - z[followed:]) / (1 - a).sqrt(), a, weights)
        descend(optimizer, loss, net.parameters())
        follow(average, student, min(.99, (1 + step) / (10 + step)))
    return average.state_dict()


GUIDANCE = 1.7      # of the teacher where a style is asked for, so that its trajectories end in that style; sampling guides beyond that


def train_decoder(folder: Path, minutes: float, device: str) -> dict:
    """The decoder's network learns to restore pictures from clean latents, noisy ones and the student's own predictions.

    The last half of the time a small critic of patches joins in: without it, edges that a prediction leaves open come out soft.
    """
    pictures, words = np.load(folder / "pictures.npy", mmap_mode="r"), torch.from_numpy(np.load(folder / "words.npy"))
    student = new_model(device)
    student.load_state_dict(torch.load(folder / "student.pt", weights_only=True))
    student.requires_grad_(False).eval()
    codec = Codec().to(device)
    codec.load_state_dict(torch.load(folder / "codec.pt", weights_only=True))
    codec.requires_grad_(False).decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(codec.decoder.parameters(), 1e-3, betas=(.9, .98))
    critic = torch.nn.Sequential(*[layer for inputs, outputs in ((3, 24), (24, 48), (48, 96)) for layer in (torch.nn.Conv2d(inputs, outputs, 4, 2, 1), torch.nn.LeakyReLU(.2))],
                                 torch.nn.Conv2d(96, 1, 3, 1, 1)).to(device)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), 4e-4, betas=(.5, .98))
    average = copy.deepcopy(codec)
    size, cells = (8, 8) if device == "cpu" else (64, 16)
    for step, progress in enumerate(clock(minutes)):
        set_rate(optimizer, 1e-3 * min(1, (step + 1) / 50) * (1 - .95 * progress))
        rows = np.random.randint(0, len(pictures), size)
        x = batch_of(pictures, rows, device)
        with torch.no_grad():
            z = codec.encode(x)
            t = torch.tensor(np.random.choice([99, 139, 259, 379], size), device=device)
            z_t, a = noised(student["net"], z * demo_model.SCALE, t)
            predicted = a.sqrt() * z_t - (1 - a).sqrt() * predict(student["net"], z_t, t, student["text"](shorten(words[rows]).to(device)))
            rough = z + .25 * torch.rand(size, 1, 1, 1, device=device) * torch.randn_like(z)
            kind = torch.rand(size, 1, 1, 1, device=device)
            z = torch.where(kind < .5, predicted / demo_model.SCALE, torch.where(kind < .75, rough, z))
            top, left = np.random.randint(0, 17 - cells, 2)                           # a window is enough to learn from
            z, x = z[..., top:top + cells, left:left + cells], x[..., 16 * top:16 * (top + cells), 16 * left:16 * (left + cells)]
        drawn = codec.decode(z)
        error = drawn - x
        slope = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        loss = error.abs().mean() + .5 * slope
        if progress > .45:
            descend(critic_optimizer, F.relu(1 - critic(x)).mean() + F.relu(1 + critic(drawn.detach())).mean(), critic.parameters())
            loss = loss - .01 * min(1, (progress - .45) / .1) * critic(drawn).mean()
        descend(optimizer, loss, codec.decoder.parameters())
        follow(average, codec, min(.995, (1 + step) / (10 + step)))
    return average.state_dict()


def train_judges(folder: Path, minutes: float, device: str) -> dict:
    """Readouts on fresh renders of all styles, half of them through the codec; returns weights, style spread and held-out scores."""
    pictures, who, style = torch.load(folder / "labelled.pt", weights_only=True).values()
    judges = judging.Judges().to(device)
    optimizer = torch.optim.AdamW(judges.parameters(), 2e-3, weight_decay=1e-2)
    geometry, traits = judging.geometry_of(who), judging.traits_of(who)
    test = len(pictures) // 8
    for progress in clock(minutes):
        set_rate(optimizer, 2e-3 * (1 - .98 * progress))
        rows = torch.randint(test, len(pictures), (48,))
        x = pictures[rows].to(device).float() / 255
        answer = judges(torch.cat([x, spoil(x[:16])]))
        face = torch.cat([torch.ones(48), torch.zeros(16)]).to(device)
        loss = F.cross_entropy(answer["style"][:48], style[rows].to(device)) + F.mse_loss(answer["geometry"][:48], geometry[rows].to(device))
        loss = loss + F.binary_cross_entropy_with_logits(answer["traits"][:48], traits[rows].to(device)) + F.binary_cross_entropy_with_logits(answer["face"], face)
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


def render_labelled(folder: Path, device: str, identities: int, styles_each: int = 6) -> dict:
    """uint8 pictures [N, 3, 128, 128] of all styles with identities and style numbers [N]; every other one went through the codec."""
    codec = Codec().to(device)
    codec.load_state_dict(torch.load(folder / "codec.pt", weights_only=True))
    generator = torch.Generator().manual_seed(SEED + 4000)
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
                    picture = (codec.expand(z + .2 * torch.randn_like(z)) * .5 + .5).clamp(0, 1)
            pictures.append((F.avg_pool2d(picture, 2) * 255).round().byte().cpu())
            people.append(who)
            styles.append(chosen[:, k])
    return {"pictures": torch.cat(pictures), "who": {name: torch.cat([who[name] for who in people]) for name in people[0]}, "style": torch.cat(styles)}


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
    parser.add_argument("--processes", type=int, default=1, help="on a CPU: processes that share each batch (Linux)")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parents[1] / ".atelier" / "train-demo", help="where stages leave their results")
    parser.add_argument("--identities", type=int, default=6400, help="people to render, five styles each")
    parser.add_argument("--start", type=Path, help="go on from the codec, UNet and texts of this packed file, as demo/microworld.safetensors")
    parser.add_argument("--faces", action="store_true", help="train the recognisers and the face adapter instead, on what an earlier run left in --folder; "
                        "--start is an adapter to go on from then, --output a folder")
    parser.add_argument("--no-student", action="store_true", help="ship the teacher itself, without distillation")
    parser.add_argument("--output", type=Path, help="the packed file (default: microworld.safetensors in --folder; copy it into demo/ when it is better)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.faces:
        from .train_faces import run as run_faces      # which builds on this module
        return run_faces(args)
    (args.folder / "meeting").unlink(missing_ok=True)      # of processes of an interrupted run
    if args.processes == 1:
        run(0, args)
    else:
        torch.multiprocessing.start_processes(run, (args,), args.processes, start_method="fork")


def run(rank: int, args) -> None:
    """All stages that are not done yet, in one of args.processes processes."""
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s")
    torch.manual_seed(SEED + rank)
    np.random.seed(SEED + rank)
    if args.processes > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{args.folder.resolve()}/meeting", rank=rank, world_size=args.processes)
    folder, device = args.folder, args.device
    minutes = {name: share * args.minutes for name, share in SHARES.items()}
    learned = {"unet.pt": lambda: train_unet(folder, minutes["unet"], device, args.start), "student.pt": lambda: (torch.load(folder / "unet.pt", weights_only=True) if args.no_student else train_student(folder, minutes["student"], device)),
               "decoder.pt": lambda: train_decoder(folder, minutes["decoder"], device)}
    alone = {"pictures.npy": lambda: render_pictures(folder, args.identities, 5, device), "codec.pt": lambda: start_codec(folder, device, args.start),
             "latents.pt": lambda: encode_pictures(folder, device), "labelled.pt": lambda: render_labelled(folder, device, max(16, args.identities // 5))}
    last = {"judges.pt": lambda: train_judges(folder, minutes["judges"], device)}
    for result, work in (alone | learned | last).items():
        done = (folder / result).exists()
        if dist.is_initialized():
            dist.barrier()
        if done:
            log.info("%s is there", result)
        elif rank == 0 or result in learned:
            log.info("making %s", result)
            made = work()
            if made is not None and rank == 0:
                store(folder / result, made)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        pack(folder, args.output or folder / "microworld.safetensors", {"recipe": "demo/train.py", "minutes": str(args.minutes), "device": device, "seed": str(SEED)})


def pack(folder: Path, output: Path, metadata: dict[str, str]) -> None:
    """Write the one file that ships from the stages' results."""
    student = torch.load(folder / "student.pt", weights_only=True)
    judged = torch.load(folder / "judges.pt", weights_only=True)
    part = lambda prefix: {name.removeprefix(prefix): value for name, value in student.items() if name.startswith(prefix)}
    save(output, part("net."), part("text."), torch.load(folder / "decoder.pt", weights_only=True), judged["judges"], judged["spread"],
         {**metadata, "judges": json.dumps(judged["scores"])})
    log.info("wrote %s (%.1f MB); readouts on held-out renders: %s", output, output.stat().st_size / 1e6, judged["scores"])


if __name__ == "__main__":
    main()
