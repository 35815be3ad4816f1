"""Trains who recognises faces of the microworld and what draws them: ``python3 atelier.py train-demo --faces``.

Stages, in the folder of ``train.py`` and as resumable as its own: people are rendered for two recognisers, one of which
learns to feed the adapter and the other to judge it; a FaceID adapter (projection, decoupled keys and values, LoRA) learns
to draw people on the frozen UNet. The adapter needs the pictures, latents and UNet that ``train.py`` left there.
"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ..host import demo_model
from ..host.attention_processors import KINDS, attention_paths, cross_attention_numbers
from . import faces
from .judges import geometry_of
from .portraits import draw, sample_identities
from .styles import NAMES, VARIANTS, paint
from .text import INDEX, LENGTH, TextEncoder
from .train import FAST, batch_of, channel_weights, clock, descend, follow, noised, set_rate, spoil, store

log = logging.getLogger("portrait_atelier")

SHARES = {"recogniser": .2, "adapter": .6}         # of --minutes; there are two recognisers
SEEDS = {"own": 21_000, "judge": 31_000}
STYLES_EACH = 5                                    # pictures of a person, for the recognisers
TOKENS, HIDDEN, RANK = 4, 128, 4                   # of the adapter


# --- recognisers

def render_people(role: str, people: int, device: str) -> dict:
    """uint8 pictures [N, 3, 64, 64] of all styles, STYLES_EACH of a person in a row, and who is in each."""
    generator = torch.Generator().manual_seed(SEEDS[role])
    pictures, everybody, styles, batch = [], [], [], 8
    for _ in range(0, people, batch):
        who = sample_identities(batch, generator)
        layers = draw({name: value.to(device) for name, value in who.items()}, 128)
        chosen = torch.rand(batch, len(NAMES), generator=generator)
        chosen[:, 0] -= .35                                       # more photos: they are what an adapter is asked with
        chosen = chosen.argsort(1)[:, :STYLES_EACH]
        drawn = [paint(layers, chosen[:, k].to(device), torch.randint(VARIANTS, (batch,), generator=generator), generator) for k in range(STYLES_EACH)]
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


def train_recogniser(folder: Path, role: str, minutes: float, device: str) -> dict:
    """Traits, pose and presence of a face, from the pictures of `people-ROLE.pt`; returns weights and held-out scores."""
    pictures, who, style = torch.load(folder / f"people-{role}.pt", weights_only=True).values()
    torch.manual_seed(SEEDS[role])
    network = faces.Recogniser().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-2)
    traits, geometry = faces.traits_vector(who), geometry_of(who)
    test, size = len(pictures) // 12 // STYLES_EACH * STYLES_EACH, 64
    for step, progress in enumerate(clock(minutes)):
        set_rate(optimizer, 3e-3 * min(1, (step + 1) / 30) * (1 - .98 * progress))
        rows = torch.randint(test, len(pictures), (size,))
        x = shaken(pictures[rows].to(device).float() / 255)
        answer = network(torch.cat([x, spoil(x[:size // 4])]))
        face = torch.cat([torch.ones(size), torch.zeros(size // 4)]).to(device)
        loss = 4 * F.mse_loss(answer["traits"][:size], traits[rows].to(device)) + .5 * F.mse_loss(answer["geometry"][:size], geometry[rows].to(device))
        descend(optimizer, loss + .5 * F.binary_cross_entropy_with_logits(answer["face"], face), network.parameters())
    network.eval()
    with torch.no_grad():
        x = pictures[:test].to(device).float() / 255
        scores = {**recognition(network, x, {name: value[:test] for name, value in who.items()}, style[:test]),
                  "faces found": float((network(x)["face"] > 0).float().mean()), "false faces": float((network(spoil(x))["face"] > 0).float().mean())}
    return {"weights": network.state_dict(), "scores": {name: round(value, 4) for name, value in scores.items()}}


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


def photos_of_people(words: torch.Tensor, styles_each: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ``train.render_pictures`` -> the rows [people, styles_each] of every person that has a photo, and the photo's row [people]."""
    rows = torch.arange(len(words)).view(-1, styles_each, 8).transpose(1, 2).reshape(-1, styles_each)      # it draws eight people at a time
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
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    seen = [recogniser.embed(F.interpolate(batch_of(pictures, part.tolist(), device) / 2 + .5, (64, 64), mode="area")).cpu() for part in rows.split(64)]
    return torch.cat(seen)


def train_adapter(folder: Path, minutes: float, device: str, start: Path | None = None) -> dict:
    """v-prediction on the frozen teacher: the latent of a person in any style, from the embedding of that person's photo.

    The adapter learns on the teacher and is used on the student, as FaceID's adapters learned on models that were distilled later.
    Returns the tensors of a FaceID file. One embedding in ten is nobody's (zeros), as FastFace's null identity.
    """
    latents, words = torch.load(folder / "latents.pt", weights_only=True).values()
    teacher = torch.load(folder / "unet.pt", weights_only=True)
    part = lambda prefix: {name.removeprefix(prefix): value for name, value in teacher.items() if name.startswith(prefix)}
    model = demo_model.model(part("net."), [[0.] * 3] * demo_model.LATENT_CHANNELS, [0.] * 3)
    net, text = model.model.diffusion_model.to(device).requires_grad_(False), TextEncoder().to(device).requires_grad_(False)
    text.load_state_dict(part("text."))
    rows, photos = photos_of_people(words)
    recogniser = faces.Recogniser().to(device)
    recogniser.load_state_dict(torch.load(folder / "recogniser-own.pt", weights_only=True)["weights"])
    embeddings = photo_embeddings(folder, recogniser.eval(), photos, device)
    adapter = Decoupled(model).to(device).requires_grad_(True)
    if start is not None:
        adapter.load_state_dict({name: value.float() for name, value in load_file(start).items()})
    average = copy.deepcopy(adapter).requires_grad_(False)
    optimizer = torch.optim.AdamW(adapter.parameters(), 2e-3, betas=(.9, .99), weight_decay=1e-3)
    size, weights = 32 if device == "cpu" else 256, channel_weights(folder).to(device)
    errors = []
    for step, progress in enumerate(clock(minutes)):
        set_rate(optimizer, 2e-3 * min(1, (step + 1) / 30) * (1 - .97 * progress))
        person = torch.randint(len(rows), (size,))
        row = rows[person, torch.randint(rows.shape[1], (size,))]
        known = torch.rand(size, 1) > .1
        noisy = embeddings[person] + .15 * torch.rand(size, 1) * F.normalize(torch.randn(size, faces.WIDTH), dim=1)
        options = adapter.options((F.normalize(noisy, dim=1) * known).to(device))
        z = latents[row].to(device).float() * demo_model.SCALE
        t = (1010 * (torch.arange(size) + torch.rand(size)) / size).long().clamp(0, 999).to(device)
        z_t, a = noised(net, z, t)
        v = (a.sqrt() * z_t - z) / (1 - a).sqrt()
        predicted = net.predict_v(z_t, t.float(), text(without_identity(words[row]).to(device)), transformer_options=options)
        loss = ((predicted - v) ** 2 * weights / (a + (1 - a) * demo_model.SCALE ** 2)).mean()
        descend(optimizer, loss, adapter.parameters())
        follow(average, adapter, min(.99, (1 + step) / (10 + step)))
        errors.append(loss.item())
        if step % 50 == 49:
            log.info("    step %d, loss %.4f", step + 1, sum(errors[-50:]) / 50)
    return average.state_dict()


def run(args) -> None:
    """All stages that are not done yet, with the arguments of ``train.py``. Half of --identities is rendered for each recogniser."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, device = args.folder, args.device
    minutes = {name: share * args.minutes for name, share in SHARES.items()}
    stages = {}
    for role in SEEDS:
        stages[f"people-{role}.pt"] = lambda role=role: render_people(role, args.identities // 2, device)
        stages[f"recogniser-{role}.pt"] = lambda role=role: train_recogniser(folder, role, minutes["recogniser"], device)
    stages["adapter.pt"] = lambda: train_adapter(folder, minutes["adapter"], device, args.start)
    for result, work in stages.items():
        if (folder / result).exists():
            log.info("%s is there", result)
        else:
            log.info("making %s", result)
            store(folder / result, work())
    pack(folder, args.output or folder)


def pack(folder: Path, output: Path) -> None:
    """Write the two files that ship: the recognisers, and the adapter, which holds nothing that a FaceID file does not hold."""
    own, judge = (torch.load(folder / f"recogniser-{role}.pt", weights_only=True) for role in SEEDS)
    scores = {role: recogniser["scores"] for role, recogniser in zip(SEEDS, (own, judge))}
    faces.save_recognisers(output / faces.PATH.name, own["weights"], judge["weights"], {"recipe": "demo/train_faces.py", "scores": json.dumps(scores)})
    adapter = torch.load(folder / "adapter.pt", weights_only=True)
    save_file({name: value.half().contiguous().cpu() for name, value in adapter.items()}, output / faces.ADAPTER_PATH.name,
              metadata={"recipe": "demo/train_faces.py"})
    log.info("wrote %s and %s; recognisers on held-out renders: %s", faces.PATH.name, faces.ADAPTER_PATH.name, scores)
