"""The decoder goes on learning: from clean latents, noisy ones and the student's own predictions."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from ...training.stage import Stage, descend, follow, half, lay_out, processes, warm
from ..codec import DOWN, Codec
from .codec import NOISE, WHOLE_FROM, Critics, difference
from .denoiser import SCALE, new_model, noised, predict, shorten
from .pictures import batch_of, held_out

IMAGES, RATE = 9_600, 6e-4
CELLS = 8                                # of a window's side: half a picture's
TIMESTEPS = (99, 139, 259, 379)          # of predictions, late enough that they show the same picture


def train(folder: Path, share: float, device: str) -> dict:
    """The codec's weights, the decoder's after ``share`` of the full training, the encoder's as they were."""
    pictures, words = np.load(folder / "pictures.npy", mmap_mode="r"), torch.from_numpy(np.load(folder / "words.npy"))
    first = held_out(len(pictures))
    student = new_model(device)
    student.load_state_dict(torch.load(folder / "student.pt", weights_only=True, map_location=device))
    student.requires_grad_(False).eval()
    codec = lay_out(Codec(), device)
    codec.load_state_dict(torch.load(folder / "codec.pt", weights_only=True, map_location=device))
    codec.requires_grad_(False).decoder.requires_grad_(True)
    torch.manual_seed(14)
    critic, average = Critics(device), copy.deepcopy(codec).requires_grad_(False)
    optimizer = torch.optim.AdamW(codec.decoder.parameters(), RATE, betas=(.9, .98))
    size = (8 if device == "cpu" else 64) // processes()
    stage = Stage(folder / "decoder.progress", int(IMAGES * share / size / processes()), codec=codec, average=average,
                  optimizer=optimizer, critic=critic.network, critic_optimizer=critic.optimizer)
    for step, progress in stage:
        rows = torch.randint(first, len(pictures), (size,))
        x = batch_of(pictures, rows.tolist(), device)
        with torch.no_grad():
            with half(device):
                z = codec.encode(x).float()
            t = torch.tensor(TIMESTEPS)[torch.randint(len(TIMESTEPS), (size,))].to(device)
            z_t, a = noised(student["net"], z * SCALE, t)
            v = predict(student["net"], z_t, t, student["text"](shorten(words[rows]).to(device)))
            predicted = (a.sqrt() * z_t - (1 - a).sqrt() * v) / SCALE
            rough = z + NOISE * torch.rand(size, 1, 1, 1, device=device) * torch.randn_like(z)
            kind = torch.rand(size, 1, 1, 1, device=device)
            z = torch.where(kind < .5, predicted, torch.where(kind < .75, rough, z))
            if progress < WHOLE_FROM:
                top, left = torch.randint(z.shape[-1] - CELLS + 1, (2,)).tolist()
                z = z[..., top:top + CELLS, left:left + CELLS]
                x = x[..., DOWN * top:DOWN * (top + CELLS), DOWN * left:DOWN * (left + CELLS)]
        x = x.contiguous(memory_format=torch.channels_last)
        with half(device):
            drawn = codec.decode(z)
        drawn = drawn.float()
        critic.learn(drawn, x)
        loss = difference(drawn, x)
        stage.tell(loss)
        descend(optimizer, loss + critic.blame(drawn), RATE * warm(step, 50) * (1 - .95 * progress))
        follow(average, codec, step, .995)
    return average.state_dict()
