"""What a loaded UNet looks like: its self-attention layers, their sizes, its family."""

from dataclasses import dataclass

from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ..attention.blocks import LayerId


@dataclass(frozen=True)
class LayerInfo:
    channels: int
    biased_keys: bool


def family(model) -> str:
    """The name ComfyUI detected for the checkpoint: SD15, SD20, SDXL, ..."""
    return type(model.model.model_config).__name__


def attention_layers(model) -> dict[LayerId, LayerInfo]:
    """Self-attention layers of a ModelPatcher's UNet in forward order, read from the module tree.

    Raises ValueError when the model is not an SD1, SD2 or SDXL UNet.
    """
    unet = getattr(model.model, "diffusion_model", None)
    found = transformers(unet) if isinstance(unet, UNetModel) else []
    if not found or any(isinstance(module, SpatialVideoTransformer) for _, module in found):
        raise ValueError(f"This node needs a UNet of the SD1, SD2 or SDXL family, but this model is {family(model)}. "
                         "Load an SD1.5, SD2.1 or SDXL checkpoint.")
    return {
        (*block, index): LayerInfo(layer.attn1.to_k.in_features, layer.attn1.to_k.bias is not None)
        for block, module in found
        for index, layer in enumerate(module.transformer_blocks)
    }


def transformers(unet) -> list[tuple[tuple[str, int], SpatialTransformer]]:
    """The spatial transformers of a UNet in forward order, each with its block such as ("output", 4)."""
    blocks = [(("input", i), block) for i, block in enumerate(unet.input_blocks)]
    blocks += [(("middle", 0), unet.middle_block)] if unet.middle_block is not None else []
    blocks += [(("output", i), block) for i, block in enumerate(unet.output_blocks)]
    return [(name, module) for name, block in blocks for module in block if isinstance(module, SpatialTransformer)]
