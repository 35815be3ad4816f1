"""What a loaded network looks like: its attention layers, its family."""

from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...attention.blocks import LayerId
from .transformers import architecture, joint_layers


def family(model) -> str:
    """The name ComfyUI detected for the checkpoint: SD15, SD20, SDXL, ..."""
    return type(model.model.model_config).__name__


def attention_layers(model) -> dict[LayerId, BasicTransformerBlock]:
    """The transformer layers of a ModelPatcher's UNet in forward order, attn1 and attn2 in each.

    Raises ValueError when the model is not an SD1, SD2 or SDXL UNet.
    """
    unet = getattr(model.model, "diffusion_model", None)
    found = blocks(unet) if isinstance(unet, UNetModel) else {}
    if not found or any(isinstance(module, SpatialVideoTransformer) for module in unet.modules()):
        raise ValueError(f"This node needs a UNet of the SD1, SD2 or SDXL family, but this model is {family(model)}. "
                         "Load an SD1.5, SD2.1 or SDXL checkpoint.")
    return found


def blocks(unet) -> dict[LayerId, BasicTransformerBlock]:
    """The transformer layers of a UNet in forward order, read from its module tree: {("output", 4, 0): module}."""
    places = [("input", number, block) for number, block in enumerate(unet.input_blocks)]
    places += [("middle", 0, unet.middle_block)] if unet.middle_block is not None else []
    places += [("output", number, block) for number, block in enumerate(unet.output_blocks)]
    return {(part, number, index): layer for part, number, block in places for module in block
            if isinstance(module, SpatialTransformer) for index, layer in enumerate(module.transformer_blocks)}


def kept_layers(model) -> dict[LayerId, int]:
    """The attention layers that SEAC reaches, in forward order, with the channels that a bank keeps of a token there.

    Of UNets a bank keeps the inputs of self-attention, of transformers keys and values. Raises ValueError for others.
    """
    network = getattr(model.model, "diffusion_model", None)
    known = architecture(network)
    if known is not None:
        return dict.fromkeys(joint_layers(network), 2 * known.width(network))
    if not isinstance(network, UNetModel):
        raise ValueError(f"This node does not know the network of {family(model)} models. It works on UNets (SD1.5, "
                         "SD2.1, SDXL) and on the transformers Z-Image, Lumina 2, Flux.1, FLUX.2, Chroma, Qwen-Image, "
                         "Krea 2 and SD3: load one of these.")
    return {layer: block.attn1.to_k.in_features for layer, block in attention_layers(model).items()}
