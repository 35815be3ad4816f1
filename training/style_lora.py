"""DiffStyler's style LoRA, equation (3): low-rank adapters on chosen Linear modules, trained to predict the noise in a picture."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

EPSILON, V = "epsilon", "v"
BETAS, WEIGHT_DECAY = (0.9, 0.999), 0.01


class Adapters(torch.nn.Module):
    """y = f(x) + Up Down x on Linear modules {name: module}: Down [rank, in] ~ N(0, 1 / rank^2), Up [out, rank] = 0.

    The modules' own weights are neither read nor written. The factor before Up is 1, so a file with alpha = rank says the same.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module], rank: int, generator: torch.Generator):
        super().__init__()
        self.modules_by_name, self.rank = dict(modules), rank
        pairs = {}
        for number, module in enumerate(self.modules_by_name.values()):
            down = torch.empty(rank, module.in_features).normal_(0, 1 / rank, generator=generator)
            pairs[str(number)] = torch.nn.ParameterList([down, torch.zeros(module.out_features, rank)])
        self.pairs = torch.nn.ModuleDict(pairs)

    @contextlib.contextmanager
    def attached(self):
        """While the context is open the modules' outputs carry the adapters. Forward hooks: fp8, GGUF, offloading need no care."""
        handles = []
        try:
            for (down, up), module in zip(self.pairs.values(), self.modules_by_name.values()):
                handles.append(module.register_forward_hook(_adding(down, up)))
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def tensors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """{module name: (Down [rank, in], Up [out, rank])}, copies in float32 on the CPU."""
        return {name: tuple(part.detach().float().cpu().clone() for part in pair) for name, pair in zip(self.modules_by_name, self.pairs.values())}


def _adding(down: torch.Tensor, up: torch.Tensor):
    def add(module, inputs, out):
        return out + F.linear(F.linear(inputs[0].to(down.dtype), down), up).to(out.dtype)

    return add


@dataclass(frozen=True, eq=False)
class Draw:
    """What one step of training sees: z_0 [1, C, h, w], the timestep, epsilon of z_0's shape."""

    z0: torch.Tensor
    t: int
    epsilon: torch.Tensor


def noised(draw: Draw, alphas: torch.Tensor) -> torch.Tensor:
    """(1) z_t = sqrt(alpha_t) z_0 + sqrt(1 - alpha_t) epsilon; alphas [T] is the cumulative product."""
    alpha = alphas[draw.t]
    return alpha.sqrt() * draw.z0 + (1 - alpha).sqrt() * draw.epsilon


def target(draw: Draw, alphas: torch.Tensor, prediction: str) -> torch.Tensor:
    """What the network should answer: epsilon, or v = sqrt(alpha) epsilon - sqrt(1 - alpha) z_0."""
    if prediction == EPSILON:
        return draw.epsilon
    alpha = alphas[draw.t]
    return alpha.sqrt() * draw.epsilon - (1 - alpha).sqrt() * draw.z0


def denoised(z_t: torch.Tensor, answer: torch.Tensor, alpha: torch.Tensor, prediction: str) -> torch.Tensor:
    """The picture that an answer of the network speaks of: z_0 from z_t in one step."""
    if prediction == EPSILON:
        return (z_t - (1 - alpha).sqrt() * answer) / alpha.sqrt()
    return alpha.sqrt() * z_t - (1 - alpha).sqrt() * answer


def loss(predict: Callable[[torch.Tensor, int], torch.Tensor], draw: Draw, alphas: torch.Tensor, prediction: str) -> torch.Tensor:
    """(3) || epsilon - epsilon_theta(z_t, t, c) ||, as the mean of squares (the paper omits the square); v for v-models.

    predict(z_t [1, C, h, w], t) is the network's answer in float32, with the adapters attached.
    """
    return F.mse_loss(predict(noised(draw, alphas), draw.t), target(draw, alphas, prediction))


def random_draw(pictures: Sequence[Sequence[torch.Tensor]], timesteps: int, window: float, generator: torch.Generator) -> Draw:
    """A picture, one of its variants, a window of it, t uniform in [0, timesteps), and epsilon ~ N(0, 1).

    pictures: latents [1, C, h, w], per picture the variants that are equally likely (such as itself and its mirror image).
    window: share of each side that is seen, at a random place; 1 is all. Only `generator`, on the CPU, is drawn from.
    """
    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    variants = pictures[pick(len(pictures))]
    z0 = variants[pick(len(variants))]
    if window < 1:
        height, width = (max(1, round(side * window)) for side in z0.shape[-2:])
        top, left = (pick(whole - part + 1) for whole, part in zip(z0.shape[-2:], (height, width)))
        z0 = z0[..., top:top + height, left:left + width]
    return Draw(z0, pick(timesteps), torch.randn(z0.shape, generator=generator).to(z0))


def probes(pictures: Sequence[Sequence[torch.Tensor]], timesteps: int, seed: int, count: int = 8) -> list[Draw]:
    """A fixed set of draws, timesteps evenly spread: the loss of single steps says more of their t than of the training."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        z0 = pictures[number % len(pictures)][0]
        found.append(Draw(z0, int((number + 0.5) * timesteps / count), torch.randn(z0.shape, generator=generator).to(z0)))
    return found


@torch.no_grad()
def probe_loss(predict, draws: Sequence[Draw], alphas: torch.Tensor, prediction: str) -> float:
    """Mean loss of a probe set."""
    return sum(float(loss(predict, draw, alphas, prediction)) for draw in draws) / len(draws)


def train(predict: Callable[[torch.Tensor, int], torch.Tensor], adapters: Adapters, pictures: Sequence[Sequence[torch.Tensor]], alphas: torch.Tensor, *,
          prediction: str, steps: int, learning_rate: float, window: float, generator: torch.Generator, on_step: Callable[[int, float], None]) -> None:
    """`steps` steps of AdamW on (3), one picture each; on_step(steps done, loss) after every one.

    The same generator state gives the same adapters, bit for bit on a CPU. Raises ValueError naming the step at the first loss
    or gradient that is not finite; the adapters then hold the steps before it.
    """
    parameters = list(adapters.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
    for step in range(1, steps + 1):
        value = loss(predict, random_draw(pictures, len(alphas), window, generator), alphas, prediction)
        found = float(value.detach())
        if math.isfinite(found):
            value.backward()
            # An infinite limit clips nothing: only the norm is wanted.
            found = found if torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, math.inf)) else math.nan
        if not math.isfinite(found):
            raise ValueError(f"Style LoRA Train stopped at step {step} of {steps}: the loss or its gradient is not finite. Lower learning_rate; "
                             "if it is step 1, check picture, caption and model for NaN.")
        optimizer.step()
        optimizer.zero_grad()
        on_step(step, found)
