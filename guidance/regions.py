"""Several styles in one picture: mask weights and one sampling step of DiffStyler, equations (6) and (7) and ours (8), (9), (10), (12).

x is in the host's coordinates, x = z / sqrt(alpha) = z_0 + sigma * epsilon; D is a prediction of z_0. Tensors are
[..., height, width]; masks and weights lie in [0, 1] at latent size.
"""

import torch


def region_weights(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(8) w_i = M_i prod_{j>i} (1 - M_j) and w_0 = prod_j (1 - M_j): later styles lie on top, and all weights sum to 1.

    masks: [styles, height, width]; returns [styles, height, width] and [height, width].
    """
    left, weights = torch.ones_like(masks[0]), []
    for mask in reversed(masks):
        weights.append(mask * left)
        left = left * (1 - mask)
    return torch.stack(weights[::-1]), left


def mixture(predictions: torch.Tensor, weights: torch.Tensor, outside: torch.Tensor, base: torch.Tensor | None = None) -> torch.Tensor:
    """One prediction out of those of all styles: [styles, C, h, w] with weights [styles, h, w] -> [C, h, w].

    With `base` equation (7): sum_i w_i D_i + w_0 D_base. Without it (9): sum_i w_i D_i / (1 - w_0), any finite value where w_0 = 1.
    """
    mixed = (weights[:, None] * predictions).sum(0)
    if base is not None:
        return mixed + outside * base
    inside = 1 - outside
    return mixed / torch.where(inside > 0, inside, torch.ones_like(inside))


def euler_step(x: torch.Tensor, prediction: torch.Tensor, sigma: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """x_E of (9): x + (x - D)(sigma' - sigma) / sigma, a DDIM step without noise."""
    return x + (x - prediction) * ((after - sigma) / sigma)


def keep_outside(x: torch.Tensor, source: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """(6), (10) x' = x_src + (1 - w_0)(x_E - x_src), copied bit for bit where w_0 is 0 or 1."""
    blended = source + (1 - outside) * (x - source)
    return torch.where(outside == 1, source, torch.where(outside == 0, x, blended))


def shared_noise_step(edit: torch.Tensor, source: torch.Tensor, z0: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """(12) z_0 + (1 - w_0)(D_edit - D_src): the next x_0 of the edited path, both paths having been noised alike.

    Equal predictions give z_0 back exactly; so does w_0 = 1.
    """
    return z0 + (1 - outside) * (edit.float() - source.float())
