"""Trains who recognises faces of the microworld and what draws them: ``python3 atelier.py train-demo --faces``.

Stages, in the folder of ``train.py`` and as resumable as its own: people are rendered for two recognisers, one of which
learns to feed the adapter and the other to judge it; a FaceID adapter (projection, decoupled keys and values, LoRA) learns
to draw people on the frozen UNet. The adapter needs the pictures, latents and UNet that ``train.py`` left there.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ...host import demo_model
from ...host.attention_processors import KINDS, attention_paths, cross_attention_numbers
from ...training.stage import Stage, descend, follow, processes, run_stages, warm, writes
from .. import faces
from ..judges import geometry_of
from ..portraits import draw, sample_identities
from ..styles import NAMES, VARIANTS, paint
from ..text import INDEX, LENGTH, TextEncoder
from .denoiser import FAST, Examples, noised, predict, v_loss, v_target
from .judges import spoil
from .pictures import PEOPLE, STYLES_EACH, batch_of, held_out

log = logging.getLogger("portrait_atelier")

IMAGES = {"recogniser": 100_000, "adapter": 72_000}
SEEDS = {"own": 21_000, "judge": 31_000}
TOKENS, HIDDEN, RANK = 4, 128, 4                   # of the adapter


# --- recognisers

def render_people(role: str, people: int, device: str) -> dict:
    """uint8 pictures [N, 3, 64, 64] of all styles, STYLES_EACH of a person in a row, and who is in each."""
    generator = torch.Generator().manual_seed(SEEDS[role])
    pictures, everybody, styles = [], [], []
    for _ in range(0, people, PEOPLE):
        who = sample_identities(PEOPLE, generator)
        layers = draw({name: value.to(device) for name, value in who.items()}, 128)
        chosen = torch.rand(PEOPLE, len(NAMES), generator=generator)
        chosen[:, 0] -= .35                                       # more photos: they are what an adapter is asked with
        chosen = chosen.argsort(1)[:, :STYLES_EACH]
        variants = torch.randint(VARIANTS, (STYLES_EACH, PEOPLE), generator=generator).to(device)
        drawn = [paint(layers, chosen[:, k].to(device), variants[k], generator) for k in range(STYLES_EACH)]
        pictures.append((F.avg_pool2d(torch.stack(drawn, 1).flatten(0, 1), 2) * 255).round().byte().cpu())
        everybody.append({name: value.repeat_interleave(STYLES_EACH, 0) for name, value in who.items()})
        styles.append(chosen.flatten())
    return {"pictures": torch.cat(pictures), "who": {name: torch.cat([who[name] for who in everybody]) for name in everybody[0]}, "style": torch.cat(styles)}


def shaken(pictures: torch.Tensor) -> torch.Tensor:
    """The pictures as a codec or a sampler might have left them: other colours, noise, blur."""
    count = len(pictures)
    device = pictures.device
    x = pictures * (1 + .06 * torch.randn(count, 3, 1, 1, device=device)) + .04 * torch.randn(count, 3, 1, 1, device=device)
    x = x + .06 * torch.rand(count, 1, 1, 1, device=device) * torch.randn_like(x)
    soft = F.interpolate(F.interpolate(x, (32, 32), mode="area"), (64, 64), mode="bilinear", align_corners=False)
    share = torch.rand(count, 1, 1, 1, device=device)
    return torch.where(share < .25, x, soft + (x - soft) * share).clamp(0, 1)


def train_recogniser(folder: Path, role: str, share: float, device: str) -> dict:
    """Traits, pose and presence of a face, from the pictures of `people-ROLE.pt`; returns weights and held-out scores."""
    pictures, who, style = torch.load(folder / f"people-{role}.pt", weights_only=True).values()
    torch.manual_seed(SEEDS[role])
    network = faces.Recogniser().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-2)
    traits, geometry = faces.traits_vector(who), geometry_of(who)
    test, size = len(pictures) // 12 // STYLES_EACH * STYLES_EACH, 64 // processes()
    stage = Stage(folder / f"recogniser-{role}.progress", int(IMAGES["recogniser"] * share / size / processes()), network=network, optimizer=optimizer)
    for step, progress in stage:
        rows = torch.randint(test, len(pictures), (size,))
        x = shaken(pictures[rows].to(device).float() / 255)
        answer = network(torch.cat([x, spoil(x[:size // 4])]))
        face = torch.cat([torch.ones(size), torch.zeros(size // 4)]).to(device)
        loss = 4 * F.mse_loss(answer["traits"][:size], traits[rows].to(device)) + .5 * F.mse_loss(answer["geometry"][:size], geometry[rows].to(device))
        loss = loss + .5 * F.binary_cross_entropy_with_logits(answer["face"], face)
        stage.tell(loss)
        descend(optimizer, loss, 3e-3 * warm(step, 30) * (1 - .98 * progress))
    network.eval()
    learn_windows(network, pictures[test:])
    with torch.no_grad():
        x = pictures[:test].to(device).float() / 255
        scores = {**recognition(network, x, {name: value[:test] for name, value in who.items()}, style[:test]),
                  "faces found": float((network(x)["face"] > 0).float().mean()), "false faces": float((network(spoil(x))["face"] > 0).float().mean())}
    return {"weights": network.state_dict(), "scores": {name: round(value, 4) for name, value in scores.items()}}


def windows(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of 64 pixels as a search for small faces sees them, [B, 3, 64, 64], and 1 where a whole face stands in the middle, [B].

    Every portrait [B, 3, 64, 64] stands in front of another one's blur. In turn: a well framed one, the bare portrait, a part of
    the face or all of it aside, and a square of something that is no face.
    """
    count, device = len(pictures), pictures.device
    kind = torch.arange(count, device=device) % 4
    random = lambda low, high: low + (high - low) * torch.rand(count, device=device)
    seen = torch.where((kind == 3).view(-1, 1, 1, 1), spoil(pictures), pictures)
    ground = F.interpolate(F.interpolate(pictures.roll(1, 0), (4, 4), mode="area"), (192, 192), mode="bilinear", align_corners=False)
    u = torch.linspace(-1, 1, 64, device=device).abs()
    edge = (8 * (1 - torch.maximum(u[:, None], u))).clamp(0, 1)
    canvas = ground.clone()
    canvas[..., 64:128, 64:128] += edge * (seen - ground[..., 64:128, 64:128])
    scale = torch.where(kind == 0, random(.85, 1.25), random(.25, 1.15))
    angle = random(0, 2 * math.pi)
    # how far from the portrait's middle, in portraits: a large window has to be well aside to lose the face, a small one shows a part anyhow
    away = torch.where(kind == 0, random(0, .1) * scale, torch.where(scale > .55, random(.45, .7) * scale, random(0, .3)))
    turn = torch.zeros(count, 2, 3, device=device)
    turn[:, 0, 0] = turn[:, 1, 1] = scale / 3
    turn[:, 0, 2], turn[:, 1, 2] = 2 / 3 * away * angle.cos(), 2 / 3 * away * angle.sin()
    cut = F.grid_sample(canvas, F.affine_grid(turn, (count, 3, 64, 64), align_corners=False), padding_mode="border", align_corners=False)
    return torch.where((kind == 1).view(-1, 1, 1, 1), pictures, cut), (kind < 2).float()


@torch.no_grad()
def learn_windows(network: faces.Recogniser, pictures: torch.Tensor, count: int = 24_000) -> None:
    """Fit the face logit alone, on what the finished trunk sees in `windows` of uint8 pictures; traits and geometry stay."""
    torch.manual_seed(41_000)
    device = network.face.weight.device
    rows, flat, answers = torch.randint(len(pictures), (count,)), [], []
    for some in rows.split(240):
        x, answer = windows(shaken(pictures[some].to(device).float() / 255))
        flat.append(network.features(x))
        answers.append(answer)
    x, answer = torch.cat(flat), torch.cat(answers)
    mean, spread = x.mean(0), x.std(0) + 1e-4
    x = (x - mean) / spread
    weight, bias = torch.zeros(x.shape[1], device=device, requires_grad=True), torch.zeros((), device=device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        with torch.enable_grad():
            wrong = F.binary_cross_entropy_with_logits(x @ weight + bias, answer) + 1e-4 * weight.square().sum()
        wrong.backward()
        return wrong

    solver.step(loss)
    network.face.weight.copy_((weight / spread)[None])
    network.face.bias.copy_(bias - (mean / spread * weight).sum())


def recognition(network: faces.Recogniser, pictures: torch.Tensor, who: dict[str, torch.Tensor], style: torch.Tensor) -> dict[str, float]:
    """Cosines of a photo with other styles of the same person and of other people; how often the same person is the nearest of all."""
    seen = network.embed(pictures).cpu()
    photo = style == NAMES.index("photo")
    person = torch.arange(len(style)) // STYLES_EACH
    cosine, same = seen[photo] @ seen[~photo].T, person[photo][:, None] == person[~photo][None]
    nearest = same.gather(1, cosine.argmax(1, keepdim=True))[same.any(1)]
    return {"same person": float(cosine[same].mean()), "another person": float(cosine[~same].mean()), "spread of others": float(cosine[~same].std()),
            "nearest is the same": float(nearest.float().mean()), "with the truth": float((seen * faces.identity_of(who)).sum(1).mean())}


# --- adapter

class Decoupled(nn.Module):
    """The adapter while it learns: projection, K' and V' of every cross-attention, LoRA of every attention of `net`.

    Names and numbers are those of the file (``identity/adapter.py``).
    """

    def __init__(self, model):
        super().__init__()
        modules = {name: module for name, module in model.model.named_modules()}
        width = demo_model.CONTEXT
        self.image_proj = nn.ModuleDict({"proj": nn.Sequential(nn.Linear(faces.WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, TOKENS * width)),
                                         "norm": nn.LayerNorm(width)})
        self.ip_adapter = nn.ModuleDict()
        self.layers = cross_attention_numbers(model)
        for number, path in attention_paths(model).items():
            parts = nn.ModuleDict()
            for kind, name in KINDS.items():
                linear = modules[f"{path}.{name}"]
                parts[kind] = low_rank(linear)
                linear.register_forward_hook(lambda module, inputs, output, lora=parts[kind]: output + lora["up"](lora["down"](inputs[0])))
            if number % 2:
                inner = modules[f"{path}.to_q"].out_features
                parts["to_k_ip"], parts["to_v_ip"] = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
                nn.init.zeros_(parts["to_v_ip"].weight)
            self.ip_adapter[str(number)] = parts

    def tokens(self, embedding: torch.Tensor) -> torch.Tensor:
        """[B, WIDTH] of length 1, or zeros for nobody -> [B, TOKENS, C]"""
        return self.image_proj["norm"](self.image_proj["proj"](embedding).unflatten(1, (TOKENS, -1)))

    def options(self, embedding: torch.Tensor) -> dict:
        """transformer_options of a call that shows these people: equation (3) at weight 1."""
        tokens = self.tokens(embedding)

        def layer(number: int):
            parts = self.ip_adapter[str(number)]

            def attend(q, k, v, extra):
                return attention(q, k, v, extra["n_heads"]) + attention(q, parts["to_k_ip"](tokens), parts["to_v_ip"](tokens), extra["n_heads"])
            return attend

        return {**FAST, "patches_replace": {"attn2": {key: layer(number) for number, key in self.layers.items()}}}


def low_rank(linear: nn.Linear) -> nn.ModuleDict:
    lora = nn.ModuleDict({"down": nn.Linear(linear.in_features, RANK, bias=False), "up": nn.Linear(RANK, linear.out_features, bias=False)})
    nn.init.normal_(lora["down"].weight, std=1 / RANK)
    nn.init.zeros_(lora["up"].weight)
    return lora


def attention(q, k, v, heads: int) -> torch.Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def photos_of_people(words: torch.Tensor, styles_each: int = STYLES_EACH) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ``pictures.render`` -> the rows [people, styles_each] of every person that has a photo, and the photo's row [people]."""
    rows = torch.arange(len(words)).view(-1, styles_each, PEOPLE).transpose(1, 2).reshape(-1, styles_each)      # it draws that many people at a time
    photo = words[rows, 1] == INDEX["photo"]
    has = photo.any(1)
    return rows[has], rows.gather(1, photo.int().argmax(1, keepdim=True))[has, 0]


def without_identity(words: torch.Tensor) -> torch.Tensor:
    """Full captions -> prompts: "portrait" and the style, seldom some words about the person, one time in ten nothing."""
    count = len(words)
    keep = (torch.rand(words.shape) < .5) & (torch.rand(count, 1) < .2)
    keep[:, 0], keep[:, 1] = torch.rand(count) < .9, torch.rand(count) < .9
    keep &= (torch.rand(count, 1) > .1) & (words > 0)
    order = torch.sort((~keep).int(), dim=1, stable=True).indices[:, :LENGTH]
    return (words * keep).gather(1, order)


@torch.no_grad()
def photo_embeddings(folder: Path, recogniser: faces.Recogniser, rows: torch.Tensor, device: str) -> torch.Tensor:
    """[N, WIDTH] of the pictures in these rows of ``latents.pt``."""
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    rows = rows + held_out(len(pictures))
    seen = [recogniser.embed(F.interpolate(batch_of(pictures, part.tolist(), device) / 2 + .5, (64, 64), mode="area")).cpu() for part in rows.split(64)]
    return torch.cat(seen)


def train_adapter(folder: Path, share: float, device: str) -> dict:
    """v-prediction on the frozen teacher: the latent of a person in any style, from the embedding of that person's photo.

    The adapter learns on the teacher and is used on the student, as FaceID's adapters learned on models that were distilled later.
    Returns the tensors of a FaceID file. One embedding in ten is nobody's (zeros), as FastFace's null identity.
    """
    examples = Examples(folder, device)
    teacher = torch.load(folder / "unet.pt", weights_only=True, map_location="cpu")
    part = lambda prefix: {name.removeprefix(prefix): value for name, value in teacher.items() if name.startswith(prefix)}
    model = demo_model.model(part("net."), 1., [], [0.] * 3)
    net, text = model.model.diffusion_model.to(device).float().requires_grad_(False), TextEncoder().to(device).requires_grad_(False)
    text.load_state_dict(part("text."))
    rows, photos = photos_of_people(examples.words)
    torch.manual_seed(16)
    recogniser = faces.Recogniser().to(device)
    recogniser.load_state_dict(torch.load(folder / "recogniser-own.pt", weights_only=True)["weights"])
    embeddings = photo_embeddings(folder, recogniser.eval(), photos, device)
    adapter = Decoupled(model).to(device).requires_grad_(True)
    average = copy.deepcopy(adapter).requires_grad_(False)
    optimizer = torch.optim.AdamW(adapter.parameters(), 2e-3, betas=(.9, .99), weight_decay=1e-3)
    size = (16 if device == "cpu" else 256) // processes()
    stage = Stage(folder / "adapter.progress", int(IMAGES["adapter"] * share / size / processes()), adapter=adapter, average=average, optimizer=optimizer)
    for step, progress in stage:
        person = torch.randint(len(rows), (size,))
        row = rows[person, torch.randint(rows.shape[1], (size,))]
        known = torch.rand(size, 1) > .1
        noisy = embeddings[person] + .15 * torch.rand(size, 1) * F.normalize(torch.randn(size, faces.WIDTH), dim=1)
        options = adapter.options((F.normalize(noisy, dim=1) * known).to(device))
        z, words = examples.at(row)
        # more of the high levels, where it is settled who is drawn
        t = (1010 * ((torch.arange(size) + torch.rand(size)) / size) ** .6).long().clamp(0, 999).to(device)
        z_t, a = noised(net, z, t)
        loss = v_loss(predict(net, z_t, t, text(without_identity(words).to(device)), options), v_target(z_t, z, a), a)
        stage.tell(loss)
        descend(optimizer, loss, 2e-3 * warm(step, 30) * (1 - .97 * progress))
        follow(average, adapter, step, .99)
    return average.state_dict()


def run(args) -> None:
    """All stages that are not done yet, with the arguments of ``train.py``. Two and a half times --identities are rendered for each recogniser."""
    folder, device = args.folder, args.device
    stages = {}
    for role in SEEDS:
        stages[f"people-{role}.pt"] = lambda role=role: render_people(role, args.identities * 5 // 2, device)
        stages[f"recogniser-{role}.pt"] = lambda role=role: train_recogniser(folder, role, args.share, device)
    stages["adapter.pt"] = lambda: train_adapter(folder, args.share, device)
    run_stages(folder, stages, shared=(*(f"recogniser-{role}.pt" for role in SEEDS), "adapter.pt"))
    if writes():
        pack(folder, args.output or folder)


def pack(folder: Path, output: Path) -> None:
    """Write the two files that ship: the recognisers, and the adapter, which holds nothing that a FaceID file does not hold."""
    own, judge = (torch.load(folder / f"recogniser-{role}.pt", weights_only=True) for role in SEEDS)
    scores = {role: recogniser["scores"] for role, recogniser in zip(SEEDS, (own, judge))}
    faces.save_recognisers(output / faces.PATH.name, own["weights"], judge["weights"], {"recipe": "demo/making/faces.py", "scores": json.dumps(scores)})
    adapter = torch.load(folder / "adapter.pt", weights_only=True)
    save_file({name: value.half().contiguous().cpu() for name, value in adapter.items()}, output / faces.ADAPTER_PATH.name,
              metadata={"recipe": "demo/making/faces.py"})
    log.info("wrote %s and %s; recognisers on held-out renders: %s", faces.PATH.name, faces.ADAPTER_PATH.name, scores)
