"""Latents and the models they belong to: one call of a model on a latent, its noise, what weights it was made with."""

import comfy.model_sampling
import comfy.samplers
import torch

from .sites import family


class OneCall(comfy.samplers.CFGGuider):
    """Evaluates every prompt once, without guidance."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        conds = [self.conds[name] for name in self.original_conds]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[0]


def fingerprint(model) -> tuple[str, object]:
    """Family and weights (with the LoRAs loaded into them) of a MODEL."""
    return family(model), (model.clone_base_uuid, model.patches_uuid)


def shared_noise(shape: torch.Size, seed: int) -> torch.Tensor:
    """The epsilon of ZePo (6): one draw per (seed, picture size), the same for every picture of the batch.

    Source and reference of equal size therefore share it across nodes too. shape: [images, channels, ...].
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, *shape[1:], generator=generator)
    return noise.expand(shape)


def feature_sigma(model_sampling, timestep: int) -> torch.Tensor:
    """sigma of the timestep: sqrt((1 - alpha_bar) / alpha_bar), so that ComfyUI's noising is ZePo (6).

    Models with a continuous schedule have no such table; they get that of Stable Diffusion.
    """
    if not isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscrete):
        model_sampling = comfy.model_sampling.ModelSamplingDiscrete()
    return model_sampling.sigma(torch.tensor([float(timestep)])).float().cpu()


def check_latent(model, latent: torch.Tensor, node: str) -> None:
    """Raises ValueError for a latent that holds no picture or does not belong to this model."""
    channels = model.model.latent_format.latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(f"The latent has shape {tuple(latent.shape)}, but {family(model)} takes [images, {channels}, height, "
                         "width]. Encode the picture with the VAE of this checkpoint.")
    if latent.numel() == 0 or not latent.any():
        raise ValueError(f"The latent of {node} is empty. Connect a VAE Encode of the picture instead of an empty latent.")
    if not torch.isfinite(latent).all():
        raise ValueError(f"The latent of {node} holds NaN or infinite values. Look at the picture and the VAE "
                         "(a half-precision VAE may overflow).")
