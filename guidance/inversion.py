"""From a picture back to the noise that DDIM would make it from: DiffStyler's inversion, ours (11)."""

from collections.abc import Callable

import torch


def invert_step(x: torch.Tensor, sigma: float, after: float, denoise: Callable[[torch.Tensor, float], torch.Tensor],
                refinements: int, slope: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(11) 1 + k times y <- x + (sigma' - sigma)(y - D(y, sigma')) / sigma', which ends where a DDIM step from y leads to x.

    x: [..., h, w] at sigma >= 0, to be found at `after` > sigma; denoise(y, sigma') is D, one UNet call each.
    slope: epsilon of the step before, from which the first guess goes on straight; without one the guess is x as the UNet sees it,
    x sqrt((1 + sigma'^2) / (1 + sigma^2)), and k = 0 is the usual first-order inversion.
    Returns y and its epsilon. A correction larger than the one before is not taken.
    """
    y = x * ((1 + after**2) / (1 + sigma**2)) ** 0.5 if slope is None else x + (after - sigma) * slope
    smallest = None
    for _ in range(1 + refinements):
        epsilon = (y - denoise(y, after)) / after
        better = x + (after - sigma) * epsilon
        change = float((better - y).norm())
        if smallest is not None and not change < smallest:
            break
        y, slope, smallest = better, epsilon, change
    return y, slope
