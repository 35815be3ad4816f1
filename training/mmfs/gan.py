"""Adversarial steps: StyleGAN2 from pictures, and phase 2; equations (2), (4) and (5)."""

from __future__ import annotations

import torch

from ...stylegan import losses
from ..stage import half, share_gradients
from .augment import augment


def adam(parameters, settings: dict, every: int = 0) -> torch.optim.Adam:
    """Adam; with `every`, of a network that takes one step more in so many, whose rate and betas are made up for it."""
    share = every / (every + 1) if every else 1.0
    betas = tuple(beta**share for beta in settings["betas"])
    return torch.optim.Adam(parameters, settings["rate"] * share, betas)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step down the gradient, of whatever length."""
    optimizer.zero_grad()
    loss.backward()
    share_gradients([value for some in optimizer.param_groups for value in some["params"]])
    optimizer.step()


class Adversary:
    """A discriminator that learns to tell real pictures from fake ones, and what it thinks of fake ones."""

    def __init__(self, network: torch.nn.Module, settings: dict, device: str):
        self.network, self.settings, self.device = network.requires_grad_(), settings, device
        self.optimizer = adam(network.parameters(), settings, settings["r1_every"])

    def learn(self, real: torch.Tensor, fake: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """A step on (2), and every so many steps one on R1. Pictures [B, 3, S, S]; fake ones carry no gradient."""
        real, fake = (augment(x, self.settings["augment"]) for x in (real, fake))
        with half(self.device):
            true, false = self.network(real).float(), self.network(fake).float()
        told = {"d": losses.tell_apart(true, false), "real": true.mean(), "fake": false.mean()}
        descend(self.optimizer, told["d"])
        if step % self.settings["r1_every"] == 0:
            real = real.detach().requires_grad_()
            told["r1"] = losses.steepness(real, self.network(real))  # in float32: it is a gradient of a gradient
            descend(self.optimizer, self.settings["r1"] / 2 * self.settings["r1_every"] * told["r1"])
        return {name: value.detach() for name, value in told.items()}

    def blame(self, fake: torch.Tensor) -> torch.Tensor:
        """(2) for the generator."""
        self.network.requires_grad_(False)
        with half(self.device):
            loss = losses.fool(self.network(augment(fake, self.settings["augment"])).float())
        self.network.requires_grad_()
        return loss
