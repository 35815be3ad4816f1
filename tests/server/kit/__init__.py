"""A node pack for tests only: a tiny random model without files, and nodes that wait, fail and check."""
import importlib.util
import time
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch


class TinySD15(comfy.supported_models.SD15):
    unet_config = {}
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}


def tiny_model():
    """SD1.5's layout with 32 channels and random weights."""
    spec = dict(
        image_size=32, in_channels=4, out_channels=4, model_channels=32, channel_mult=[1, 2, 4, 4], num_res_blocks=[2] * 4,
        transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1, transformer_depth_output=[1] * 9 + [0] * 3,
        use_spatial_transformer=True, context_dim=64, use_linear_in_transformer=False, adm_in_channels=None, legacy=False,
        dtype=torch.float32, use_temporal_attention=False, use_temporal_resblock=False,
    )
    model = TinySD15(spec).get_model({}, device=torch.device("cpu")).eval()
    noise = torch.Generator().manual_seed(0)
    for name, weight in model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, weight[0].numel() ** -0.5, generator=noise)
        else:
            weight.data.fill_(float(name.endswith("weight")))
    management = comfy.model_management
    return comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


class KitModel:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CONDITIONING"), "run", "kit"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        words = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(1))
        return tiny_model(), [[words, {}]]


class KitEncode:
    """A picture as a latent: an eighth of its size, its three channels and their mean."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "run", "kit"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image):
        small = torch.nn.functional.interpolate(image[..., :3].movedim(-1, 1), (16, 16), mode="area") * 2 - 1
        return ({"samples": torch.cat([small, small.mean(1, keepdim=True)], 1)},)


class KitDecode:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "kit"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    def run(self, samples):
        picture = torch.nn.functional.interpolate(samples["samples"][:, :3], scale_factor=8)
        return (picture.movedim(1, -1).sigmoid(),)


class KitWait:
    """Passes a picture on after `seconds`, reporting a step every 0.05 s and honouring Cancel."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "kit"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 600.0})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def run(self, image, seconds):
        steps = int(seconds * 20)
        progress = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            time.sleep(0.05)
            progress.update(1)
        return (image,)


class KitFail:
    """Fails with `text`, while checking its inputs when `early`, else while it runs."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "kit"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "text": ("STRING", {"default": "no"}),
                             "early": ("BOOLEAN", {"default": False}), "how": (["raise", "exit"],)}}

    @classmethod
    def VALIDATE_INPUTS(cls, early, text):
        return text if early else True

    def run(self, image, text, early, how):
        if how == "exit":
            import os
            os._exit(3)
        raise ValueError(text + "\nand a second line")


class Text:
    """Stands for a text encoder: every text has random words of its own, of so many channels."""

    def __init__(self, channels):
        self.channels = channels

    def tokenize(self, text, **options):
        return text

    def encode_from_tokens_scheduled(self, text):
        words = torch.Generator().manual_seed(sum(text.encode()))
        return [[torch.randn(1, 7, self.channels, generator=words), {}]]


class Codec:
    """Stands for a VAE, with this many channels of smaller pictures and as many dimensions."""

    def __init__(self, channels, factor, dimensions):
        self.channels, self.factor, self.dimensions = channels, factor, dimensions

    def encode(self, pixels):
        size = [side // self.factor for side in pixels.shape[1:3]]
        small = torch.nn.functional.interpolate(pixels[..., :3].movedim(-1, 1), size, mode="area") * 2 - 1
        latent = small.repeat(1, -(-self.channels // 3), 1, 1)[:, :self.channels]
        return latent if self.dimensions == 2 else latent[:, :, None]

    def decode(self, latent):
        latent = latent if latent.ndim == 4 else latent[:, :, 0]
        return torch.nn.functional.interpolate(latent[:, :3], scale_factor=self.factor).movedim(1, -1).sigmoid()


class KitTransformer:
    """(model, text encoder, VAE) of a family of tests/tiny_transformers.py. Older ComfyUIs lack some of the classes."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "run", "kit"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"family": ("STRING", {}), "factor": ("INT", {"default": 8})}}

    def run(self, family, factor):
        path = Path(__file__).resolve().parents[2] / "tiny_transformers.py"
        spec = importlib.util.spec_from_file_location("tiny_transformers", path)
        tiny = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tiny)
        model = tiny.build(family)
        form = model.get_model_object("latent_format")
        return model, Text(tiny.TEXT), Codec(form.latent_channels, factor, form.latent_dimensions)


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (KitModel, KitEncode, KitDecode, KitWait, KitFail, KitTransformer)}
