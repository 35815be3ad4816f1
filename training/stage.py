"""What every stage of the training shares: its steps, its rate, its precision, and that it can be interrupted."""

from __future__ import annotations

import datetime
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as group

log = logging.getLogger("portrait_atelier")

TELL_EVERY, SAVE_EVERY = 60., 180.       # seconds


def share_work(folder: Path, processes: int) -> None:
    """Start the same command ``processes`` - 1 times more; from then on they train together, each on its part of a batch.

    On CPUs two processes of one thread are nearly twice as fast as one; two threads of one process are not.
    """
    if processes == 1 or group.is_initialized():      # the latter: a part of what works together already
        return
    meeting, rank = folder / "processes", int(os.environ.get("PORTRAIT_ATELIER_RANK", 0))
    if rank == 0:
        meeting.unlink(missing_ok=True)
        for other in range(1, processes):
            subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=os.environ | {"PORTRAIT_ATELIER_RANK": str(other)})
    group.init_process_group("gloo", init_method=meeting.resolve().as_uri(), rank=rank, world_size=processes,
                             timeout=datetime.timedelta(days=1))


def processes() -> int:
    return group.get_world_size() if group.is_initialized() else 1


def writes() -> bool:
    """Whether this is the process that writes."""
    return not group.is_initialized() or group.get_rank() == 0


class Stage:
    """Steps of a training. What it has learned is saved now and then, and found again by the next Stage of that path.

    ``parts`` are the modules and optimizers. The random state is kept too, so that an interrupted training on a CPU ends
    with the same weights as one that was not.
    """

    def __init__(self, path: Path, steps: int, save_every: float = SAVE_EVERY, **parts):
        self.path, self.steps, self.parts, self.save_every = path, max(1, steps), parts, save_every
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
            if not writes():       # other draws than the first process's, and the same after an interruption
                torch.manual_seed(1_000_003 * group.get_rank() + self.step)
            yield self.step, self.step / self.steps
            self.step += 1
            now = time.monotonic()
            if not writes():
                continue
            if now - told > TELL_EVERY:
                pace = (now - start) / (self.step - first)
                left, loss = pace * (self.steps - self.step) / 60, sum(map(float, self.told)) / max(1, len(self.told))
                log.info("    step %d of %d, %.0f minutes left, loss %.4f", self.step, self.steps, left, loss)
                told, self.told = now, []
            if now - saved > self.save_every:
                self.save()
                saved = time.monotonic()
        if writes():
            self.save()

    def tell(self, loss: torch.Tensor) -> None:
        """Note the loss of a step, for the log."""
        if writes():
            self.told.append(loss.detach())

    def save(self) -> None:
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        store(self.path, {"parts": parts, "step": self.step, "random": torch.get_rng_state()})


def store(path: Path, value) -> None:
    """Whole or not at all: an interrupted stage must not look finished."""
    torch.save(value, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def run_stages(folder: Path, stages: dict, shared: tuple[str, ...]) -> None:
    """Make the results that are not there yet, in order; what a stage gives back is stored under its name.

    Several processes work together on the ``shared`` ones, and wait for the first at the others.
    """
    for result, work in stages.items():
        if (folder / result).exists():
            log.info("%s is there", result)
        elif writes() or result in shared:
            log.info("making %s", result)
            made = work()
            if writes():
                if made is not None:
                    store(folder / result, made)
                (folder / result).with_suffix(".progress").unlink(missing_ok=True)
        if processes() > 1:
            group.barrier()


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
    for some in optimizer.param_groups:
        some["lr"] = rate
        share_gradients(some["params"])
        torch.nn.utils.clip_grad_norm_(some["params"], 1.)
    optimizer.step()


def share_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """The mean of all processes' gradients, to all of them."""
    if processes() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    group.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view(gradient.shape) / processes())


def warm(step: int, steps: int = 100) -> float:
    return min(1., (step + 1) / steps)


@torch.no_grad()
def follow(average: torch.nn.Module, module: torch.nn.Module, step: int, decay: float) -> None:
    """The running average of a module's weights, shorter at first."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), share)
