"""The student: from any point of the teacher's trajectory it says where that ends, so that four steps are enough."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from ...training.stage import Stage, descend, follow, processes, warm
from ..styles import TRAINED
from ..text import INDEX, LENGTH
from .denoiser import Examples, new_model, noised, predict, shorten, v_loss, v_target

IMAGES, RATE = 8_000, 3e-4
# Above, a picture is decided: the student learns whole trajectories. Below, it goes on learning from the data.
HIGH = 600
STARTS = (999, 999, 759)      # where the four LCM steps begin and go on, beside any other timestep above HIGH
# Of the teacher where a style is asked for, so that its trajectories end in that style; sampling guides beyond that.
GUIDANCE = 1.7


@torch.no_grad()
def trajectory(teacher, z_t, start: int, context, empty, guidance):
    """From z_t at timestep `start` to the end -> points [(t, z_t)] on the way and the z0 they all lead to.

    DPM-Solver++ (2M) with the teacher's predictions, guided by `guidance` [B, 1, 1, 1]: in so few steps the first-order
    DDIM ends in a blur.
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


def train(folder: Path, share: float, device: str) -> dict:
    """Consistency distillation with whole trajectories above HIGH; below, the student keeps learning from pictures.

    Trajectories lose popart's dots, which no later step puts back, so there the student keeps the teacher's own prediction.
    """
    examples = Examples(folder, device)
    teacher = new_model(device)
    teacher.load_state_dict(torch.load(folder / "unet.pt", weights_only=True, map_location=device))
    teacher.requires_grad_(False).eval()
    torch.manual_seed(13)
    student = copy.deepcopy(teacher)
    net = student["net"].requires_grad_(True)
    average = copy.deepcopy(teacher)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, betas=(.9, .99), weight_decay=0)
    size = (32 if device == "cpu" else 256) // processes()
    followed = 3 * size // 8                      # of the batch; trajectories are dear
    empty = teacher["text"](torch.zeros(1, LENGTH, dtype=torch.long, device=device))
    style_words = torch.tensor([INDEX[name] for name in TRAINED])
    steps = int(IMAGES * share / size / processes())
    stage = Stage(folder / "student.progress", steps, net=net, average=average, optimizer=optimizer)
    for step, progress in stage:
        z, words = examples.draw(size)
        prompts = shorten(words)
        context = teacher["text"](prompts.to(device))
        told = prompts[:followed, :, None] == style_words
        guidance = torch.where(told.flatten(1).any(1), GUIDANCE, 1.).view(-1, 1, 1, 1).to(device)
        kept = (prompts[:followed] == INDEX["popart"]).any(1).view(-1, 1, 1, 1).to(device)
        starts = [*STARTS, HIGH + int(torch.randint(1000 - HIGH, ()))]
        start = starts[torch.randint(len(starts), ())]
        z_t, _ = noised(net, z[:followed], torch.full((followed,), start, device=device))
        points, end = trajectory(teacher, z_t, start, context[:followed], empty, guidance)
        later = [point for point in points[1:] if point[0] >= HIGH] or points[:1]
        loss = 0
        for t, point in (points[0], later[torch.randint(len(later), ())]):
            a = net.alphas_cumprod[t]
            with torch.no_grad():
                v = torch.where(kept, predict(teacher["net"], point, t, context[:followed]), v_target(point, end, a))
            loss = loss + .5 * v_loss(predict(net, point, t, context[:followed]), v, a)
        count = size - followed
        t = (20 + HIGH * (torch.arange(count) + torch.rand(count)) / count).long().to(device)
        z_t, a = noised(net, z[followed:], t)
        loss = loss + v_loss(predict(net, z_t, t, context[followed:]), v_target(z_t, z[followed:], a), a)
        stage.tell(loss)
        descend(optimizer, loss, RATE * warm(step, 30) * (1 - .97 * progress))
        follow(average, student, step, .99)
    return average.state_dict()
