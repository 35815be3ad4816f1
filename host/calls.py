"""What an attention patch may know about the model call it runs in: sigma, the step, and a store for the run.

One wrapper around the sampling run keeps what lives as long as the run; one around each denoiser call reads sigma once for
all layers (reading it in a layer would wait for the GPU there). Patches find the result as ``extra[CALL]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP

from ..guidance.schedule import step_count, step_of, value_at
from .log import log

KEY = "portrait_atelier.attention"
CALL = KEY + ".call"
RUN = KEY + ".run"


class Run:
    """What one sampling run keeps: the size of its latent, tensors moved to the device, warnings already given."""

    def __init__(self, size: tuple[int, int]):
        self.size = tuple(size)
        self.moved = {}
        self.warned = set()
        self.last = None

    def warn(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            log.warning("%s", message)


@dataclass(frozen=True, eq=False)
class Call:
    """One denoiser call; `step` of `steps` holds its sigma.

    cropped: the call is about a part of the picture; split: its sigma was seen just before with other prompts.
    """

    run: Run
    model_sampling: object
    sigma: float
    step: int
    steps: int
    cropped: bool
    split: bool

    def within(self, start: float, end: float) -> bool:
        """Whether sigma lies in this part of the full schedule, in fractions of it. The sampling in force decides."""
        return self.model_sampling.percent_to_sigma(end) <= self.sigma <= self.model_sampling.percent_to_sigma(start)

    def value(self, values: Sequence[float]) -> float:
        """The value of a per-step list at this step; the first where the caller gave no schedule."""
        return value_at(values, self.step, self.steps)

    def moved(self, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """A patch's tensor in the device and dtype of `like`, moved once per run."""
        key = (id(tensor), like.device, like.dtype)
        if key not in self.run.moved:
            self.run.moved[key] = tensor.to(like.device, like.dtype)
        return self.run.moved[key]


def note_calls(model) -> None:
    """Puts the wrappers on `model`, a fresh clone, unless they are there."""
    if not model.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, keep_run)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, note_call)


def keep_run(executor, noise, *args, **kwargs):
    options = executor.class_obj.model_options["transformer_options"]
    options[RUN] = Run(noise.shape[-2:])
    try:
        return executor(noise, *args, **kwargs)
    finally:
        del options[RUN]


def note_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
    run = transformer_options.get(RUN)
    if run is None:  # somebody calls the model outside of a sampling run
        run = Run(x.shape[-2:])
    sigma, schedule = float(t.flatten()[0]), transformer_options.get("sample_sigmas")
    slots = tuple(transformer_options.get("cond_or_uncond", ()))
    split = run.last is not None and run.last[0] == sigma and run.last[1] != slots
    run.last = sigma, slots
    call = Call(run, executor.class_obj.model_sampling, sigma, step_of(sigma, schedule), step_count(schedule),
                tuple(x.shape[-2:]) != run.size, split)
    return executor(x, t, c_concat, c_crossattn, control, {**transformer_options, CALL: call}, **kwargs)
