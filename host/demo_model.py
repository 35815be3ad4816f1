"""The demo's networks as ordinary ComfyUI objects: MODEL, CLIP and VAE."""

from __future__ import annotations

import copy

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

DOWN, CONTEXT = 16, 64


def unet_config(channels: int, width: int) -> dict:
    """SD1.5's block numbers, so that every layer list means the same here: 16 self-attentions, 8..15 in the decoder."""
    return dict(image_size=32, in_channels=channels, out_channels=channels, model_channels=width,
                channel_mult=[1, 1, 2, 1], num_res_blocks=[2] * 4, transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1,
                transformer_depth_output=[1] * 9 + [0] * 3, use_spatial_transformer=True, context_dim=CONTEXT,
                use_linear_in_transformer=False, adm_in_channels=None, legacy=False, dtype=torch.float32,
                use_temporal_attention=False, use_temporal_resblock=False)


class Operations(comfy.ops.manual_cast):
    class GroupNorm(comfy.ops.manual_cast.GroupNorm):
        """SD's 32 groups of so few channels would hold two channels each and erase colour."""

        def __init__(self, num_groups=32, num_channels=None, **kwargs):
            super().__init__(8, num_channels, **kwargs)


class EpsilonUNet(UNetModel):
    """Predicts v inside and epsilon outside, so that the graph around it is that of SD1.5-LCM.

    A small network learns portraits from v in a fraction of the images that epsilon needs: at t = 999 an error in epsilon
    is 15 times larger in z0. epsilon = alpha v + sigma z_t, with z_t the network's input.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        betas = torch.linspace(.00085 ** .5, .012 ** .5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = torch.cumprod(1 - betas, 0).float()      # a plain tensor: not part of the weights

    def predict_v(self, x, timesteps, context, **kwargs):
        return super()._forward(x, timesteps, context, **kwargs)

    def _forward(self, x, timesteps=None, context=None, y=None, control=None, transformer_options={}, **kwargs):
        v = super()._forward(x, timesteps, context, y, control, transformer_options, **kwargs)
        a = self.alphas_cumprod.to(x.device)[timesteps.long().clamp(0, 999)].view(-1, 1, 1, 1)
        return a.sqrt() * v + (1 - a).sqrt() * x


class Latents(comfy.latent_formats.LatentFormat):
    spacial_downscale_ratio = DOWN


HEADS = {"num_heads": 2, "num_head_channels": -1}


class DemoConfig(comfy.supported_models_base.BASE):
    unet_extra_config = HEADS
    latent_format = Latents
    custom_operations = Operations
    memory_usage_factor = .2

    def inpaint_model(self):
        return False     # more than four latent channels does not mean an inpainting model here

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.BaseModel(self, comfy.model_base.ModelType.EPS, device, EpsilonUNet)


def network(channels: int, width: int, device=None) -> EpsilonUNet:
    """The bare UNet, untrained, for latents of so many channels."""
    return EpsilonUNet(**unet_config(channels, width), **HEADS, device=device, operations=Operations)


def model(weights: dict[str, torch.Tensor], scale: float, rgb: list[list[float]],
          rgb_bias: list[float]) -> comfy.model_patcher.ModelPatcher:
    """UNet weights -> MODEL. The weights say the network's width and the latents' channels.

    ``scale`` is the spread of the latents it was trained on, those of the codec having 1: the louder they are, the more
    of a picture survives a given denoise. ``rgb`` [channels][3] and ``rgb_bias`` [3] turn the codec's latents into the
    sampler's previews. The precision of weights and of computing is what ComfyUI chooses for a checkpoint: by its flags,
    else by the device.
    """
    width, channels = weights["input_blocks.0.0.weight"].shape[:2]
    config, device = DemoConfig(unet_config(channels, width)), comfy.model_management.get_torch_device()
    dtype = comfy.model_management.unet_dtype(device, sum(value.numel() for value in weights.values()), config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, config.supported_inference_dtypes))
    config.latent_format.latent_channels, config.latent_format.scale_factor = channels, scale
    config.latent_format.latent_rgb_factors = [[value / scale for value in row] for row in rgb]
    config.latent_format.latent_rgb_factors_bias = rgb_bias
    base = config.get_model({})
    base.diffusion_model.load_state_dict({name: value.float() for name, value in weights.items()})
    return comfy.model_patcher.ModelPatcher(base.eval(), device, comfy.model_management.unet_offload_device())


class DemoVAE(comfy.sd.VAE):
    def vae_encode_crop_pixels(self, pixels):
        """Grey becomes RGB. Raises ValueError for pictures smaller than one latent cell, of which cropping would leave nothing."""
        height, width, channels = pixels.shape[-3:]
        if min(height, width) < DOWN:
            raise ValueError(f"The picture has {width} x {height} pixels, but the demo's VAE needs {DOWN} x {DOWN} at least, and 256 x 256 suit it. Scale "
                             "the picture with Upscale Image, or take another.")
        return super().vae_encode_crop_pixels(pixels if channels > 2 else pixels[..., :1].expand(*pixels.shape[:-1], 3))


def vae(codec: torch.nn.Module) -> comfy.sd.VAE:
    """A codec with encode, decode and ``channels``, pictures from -1 to 1 -> VAE, in the precision that ComfyUI chooses for a
    checkpoint's VAE."""
    dtype = comfy.model_management.vae_dtype(comfy.model_management.vae_device(), [torch.bfloat16, torch.float32])
    wrapped = DemoVAE(sd={"pixel_space_vae": torch.tensor(1.)}, dtype=dtype)   # every field the host wants, then ours
    wrapped.first_stage_model = copy.deepcopy(codec).to(dtype).eval()
    wrapped.patcher = comfy.model_patcher.ModelPatcher(wrapped.first_stage_model, wrapped.device, comfy.model_management.vae_offload_device())
    wrapped.latent_channels, wrapped.downscale_ratio, wrapped.upscale_ratio = codec.channels, DOWN, DOWN
    wrapped.memory_used_encode = lambda shape, dtype: 400 * shape[2] * shape[3]
    wrapped.memory_used_decode = lambda shape, dtype: 400 * shape[2] * shape[3] * DOWN ** 2
    wrapped.size = None
    wrapped.model_size()
    return wrapped


class _Target:
    """What comfy.sd.CLIP builds a text encoder from."""

    params: dict = {}

    def __init__(self, encoder, tokenize, length):
        class Tokenizer:
            def __init__(self, embedding_directory=None, tokenizer_data={}):
                pass

            def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
                tokens = tokenize(text)
                return {"l": [[(token, 1.) for token in tokens + [0] * (length - len(tokens))]]}

        class Encoder(torch.nn.Module):
            dtypes = {torch.float32}

            def __init__(self, dtype=None, device=None, model_options={}):
                super().__init__()
                self.encoder = encoder

            def reset_clip_options(self):
                pass

            def set_clip_options(self, options):
                pass

            def encode_token_weights(self, tokens):
                ids = torch.tensor([[token for token, _ in row] for row in tokens["l"]])
                context = self.encoder(ids.to(next(self.encoder.parameters()).device))
                return context, context.mean(1)

            def load_sd(self, weights):
                return self.encoder.load_state_dict(weights)

        self.tokenizer, self.clip = Tokenizer, Encoder


def clip(encoder: torch.nn.Module, tokenize, length: int) -> comfy.sd.CLIP:
    """A text encoder (token numbers [B, length] -> context [B, length, C]) and its tokenizer -> CLIP."""
    return comfy.sd.CLIP(_Target(encoder.eval(), tokenize, length))
