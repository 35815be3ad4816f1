"""What every stage of the training shares: its steps, its rate, its precision, and that it can be interrupted."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch

log = logging.getLogger("portrait_atelier")

TELL_EVERY, SAVE_EVERY = 60., 180.       # seconds


class Stage:
    """Steps of a training. What it has learned is saved now and then, and found again by the next Stage of that path.

    ``parts`` are the modules and optimizers. The random state is kept too, so that an interrupted training on a CPU ends
    with the same weights as one that was not.
    """

    def __init__(self, path: Path, steps: int, **parts):
        self.path, self.steps, self.parts = path, max(1, steps), parts
        self.step, self.told = 0, []
        if path.exists():
            kept = torch.load(path, weights_only=True, map_location="cpu")
            for name, part in parts.items():
                part.load_state_dict(kept["parts"][name])
            self.step = kept["step"]
            torch.set_rng_state(kept["random"])
            log.info("    going on at step %d of %d", self.step, self.steps)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """The number of each step that is left and the progress from 0 to 1."""
        first, start, saved, told = self.step, time.monotonic(), time.monotonic(), time.monotonic()
        while self.step < self.steps:
            yield self.step, self.step / self.steps
            self.step += 1
            now = time.monotonic()
            if now - told > TELL_EVERY:
                pace = (now - start) / (self.step - first)
                left, loss = pace * (self.steps - self.step) / 60, sum(map(float, self.told)) / max(1, len(self.told))
                log.info("    step %d of %d, %.0f minutes left, loss %.4f", self.step, self.steps, left, loss)
                told, self.told = now, []
            if now - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()

    def tell(self, loss: torch.Tensor) -> None:
        """Note the loss of a step, for the log."""
        self.told.append(loss.detach())

    def save(self) -> None:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        store(self.path, {"parts": parts, "step": self.step, "random": torch.get_rng_state()})


def store(path: Path, value) -> None:
    """Whole or not at all: an interrupted stage must not look finished."""
    torch.save(value, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def run_stages(folder: Path, stages: dict) -> None:
    """Make the results that are not there yet, in order; what a stage gives back is stored under its name."""
    for result, work in stages.items():
        if (folder / result).exists():
            log.info("%s is there", result)
            continue
        log.info("making %s", result)
        made = work()
        if made is not None:
            store(folder / result, made)
        (folder / result).with_suffix(".progress").unlink(missing_ok=True)


def half(device: str) -> torch.autocast:
    """Products in bfloat16, which a GPU and a processor with its units do several times faster."""
    able = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=able)


def lay_out(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """The module on the device, channels last: convolutions in bfloat16 are much faster so."""
    return module.to(device).to(memory_format=torch.channels_last)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    """One step down the gradient, which is cut to length 1."""
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(group["params"], 1.)
    optimizer.step()


def warm(step: int, steps: int = 100) -> float:
    return min(1., (step + 1) / steps)


@torch.no_grad()
def follow(average: torch.nn.Module, module: torch.nn.Module, step: int, decay: float) -> None:
    """The running average of a module's weights, shorter at first."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), share)
