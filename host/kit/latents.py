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

    Flow models mix picture and noise by parts, here thousandths: 99 is a tenth of noise. Other models with a continuous
    schedule have no such table; they get that of Stable Diffusion.
    """
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return torch.tensor([(timestep + 1) / 1000])
    if not isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscrete):
        model_sampling = comfy.model_sampling.ModelSamplingDiscrete()
    return model_sampling.sigma(torch.tensor([float(timestep)])).float().cpu()


def check_latent(model, latent: torch.Tensor, node: str) -> torch.Tensor:
    """The latent as the model takes it: [images, channels, 1, height, width] where it was made for films, or without 1.

    Raises ValueError for a latent that holds no picture or does not belong to this model.
    """
    latent_format = model.model.latent_format
    channels = latent_format.latent_channels
    film = latent_format.latent_dimensions == 3
    if film and latent.ndim == 4:
        latent = latent[:, :, None]
    if latent.ndim != 4 + film or latent.shape[1] != channels:
        raise ValueError(f"The latent has shape {tuple(latent.shape)}, but {family(model)} takes [images, {channels}, height, "
                         "width]. Encode the picture with the VAE of this checkpoint.")
    if latent.numel() == 0 or not latent.any():
        raise ValueError(f"The latent of {node} is empty. Connect a VAE Encode of the picture instead of an empty latent.")
    if not torch.isfinite(latent).all():
        raise ValueError(f"The latent of {node} holds NaN or infinite values. Look at the picture and the VAE "
                         "(a half-precision VAE may overflow).")
    if film and latent.shape[2] > 1:
        raise ValueError(f"The latent of {node} holds {latent.shape[2]} frames. This node takes still pictures: encode "
                         "one picture.")
    return latent
