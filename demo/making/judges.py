"""Readouts of style, identity and "is a face", trained on renders for the measurements."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from ...training.stage import Stage, descend, half, lay_out, processes
from .. import judges as judging
from ..codec import Codec
from ..portraits import draw, sample_identities
from ..styles import NAMES, VARIANTS, paint
from .pictures import PEOPLE, SEED

IMAGES, RATE = 62_500, 2e-3
STYLES_EACH = 6


@torch.no_grad()
def render_labelled(folder: Path, device: str, identities: int) -> dict:
    """uint8 pictures [N, 3, 128, 128] of all styles, half of them through the codec, with identities and styles [N]."""
    codec = lay_out(Codec(), device).eval()
    codec.load_state_dict(torch.load(folder / "codec.pt", weights_only=True, map_location=device))
    generator = torch.Generator().manual_seed(SEED - 1_000_000)
    pictures, people, styles = [], [], []
    for start in range(0, identities, PEOPLE):
        who = sample_identities(PEOPLE, generator)
        layers = draw({name: value.to(device) for name, value in who.items()})
        chosen = torch.rand(PEOPLE, len(NAMES), generator=generator).argsort(1)[:, :STYLES_EACH]
        for k in range(STYLES_EACH):
            variant = torch.randint(VARIANTS, (PEOPLE,), generator=generator)
            picture = paint(layers, chosen[:, k].to(device), variant.to(device), generator)
            if (start // PEOPLE + k) % 2:
                with half(device):
                    z = codec.encode(picture * 2 - 1).float()
                    noise = torch.randn(z.shape, generator=generator).to(device)
                    picture = (codec.decode(z + .2 * noise).float() * .5 + .5).clamp(0, 1)
            pictures.append((F.avg_pool2d(picture, 2) * 255).round().byte().cpu())
            people.append(who)
            styles.append(chosen[:, k])
    everybody = {name: torch.cat([who[name] for who in people]) for name in people[0]}
    return {"pictures": torch.cat(pictures), "who": everybody, "style": torch.cat(styles)}


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



def train(folder: Path, share: float, device: str) -> dict:
    """Returns weights, the spread of style features over the world, and held-out scores."""
    pictures, who, style = torch.load(folder / "labelled.pt", weights_only=True).values()
    torch.manual_seed(15)
    judges, size = judging.Judges().to(device), 48 // processes()
    optimizer = torch.optim.AdamW(judges.parameters(), RATE, weight_decay=1e-2)
    geometry, traits = judging.geometry_of(who), judging.traits_of(who)
    test = len(pictures) // 8
    stage = Stage(folder / "judges.progress", int(IMAGES * share / size / processes()), judges=judges, optimizer=optimizer)
    for _, progress in stage:
        rows = torch.randint(test, len(pictures), (size,))
        x = pictures[rows].to(device).float() / 255
        answer = judges(torch.cat([x, spoil(x[:size // 3])]))
        face = torch.cat([torch.ones(size), torch.zeros(size // 3)]).to(device)
        loss = F.cross_entropy(answer["style"][:size], style[rows].to(device))
        loss = loss + F.mse_loss(answer["geometry"][:size], geometry[rows].to(device))
        loss = loss + F.binary_cross_entropy_with_logits(answer["traits"][:size], traits[rows].to(device))
        loss = loss + F.binary_cross_entropy_with_logits(answer["face"], face)
        stage.tell(loss)
        descend(optimizer, loss, RATE * (1 - .98 * progress))
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
    scores = {name: round(float(value), 4) for name, value in scores.items()}
    return {"judges": judges.state_dict(), "spread": spread, "scores": scores}
