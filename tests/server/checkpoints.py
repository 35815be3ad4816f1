"""Checkpoint files with random weights that ComfyUI's loaders take for whole ones: SD1.5 with one level and two blocks.

Run as a program in a process of its own: python checkpoints.py COMFYUI FOLDER
"""
import json
import sys
from pathlib import Path

UNET = dict(image_size=32, in_channels=4, out_channels=4, model_channels=320, channel_mult=[1], num_res_blocks=[1], transformer_depth=[1],
            transformer_depth_middle=1, transformer_depth_output=[1, 1], use_spatial_transformer=True, context_dim=768, num_heads=8,
            use_linear_in_transformer=False, adm_in_channels=None, legacy=False, use_temporal_attention=False, use_temporal_resblock=False)


def build(comfyui: str, folder: Path) -> None:
    """folder/"Mein Modell ä.safetensors", 60 MB and a hole where the text encoder's zeros are, and folder/lcm-lora-sdv1-5.safetensors."""
    sys.path.insert(0, comfyui)
    import comfy.cli_args
    comfy.cli_args.args.cpu = True
    import comfy.ldm.modules.diffusionmodules.openaimodel as unets
    import comfy.ops
    import comfy.sd1_clip
    import comfy.taesd.taesd
    import torch

    def random(module, seed: int) -> dict:
        noise = torch.Generator().manual_seed(seed)
        return {name: torch.randn(value.shape, generator=noise) * value[0].numel() ** -0.5 if value.ndim > 1
                else torch.full(value.shape, float(name.endswith(("weight", "scale"))))
                for name, value in module.state_dict().items()}

    plain = comfy.ops.disable_weight_init
    unet = random(unets.UNetModel(**UNET, dtype=torch.float32, device="cpu", operations=plain), 0)
    codec = random(comfy.taesd.taesd.TAESD(latent_channels=4), 1)
    with torch.device("meta"):
        text = comfy.sd1_clip.SDClipModel(device="meta", dtype=torch.float16).state_dict()
    tensors = {f"model.diffusion_model.{name}": value.half() for name, value in unet.items()}
    tensors |= {f"first_stage_model.{name}": value.half() for name, value in codec.items()}
    zeros = {f"cond_stage_model.{name}": tuple(value.shape) for name, value in text.items() if name.startswith("transformer.text_model")}
    write(folder / "Mein Modell ä.safetensors", tensors, zeros)
    noise = torch.Generator().manual_seed(2)
    lora = {}
    for part in ("down_blocks_0_attentions_0", "mid_block_attentions_0"):
        key = f"lora_unet_{part}_transformer_blocks_0_attn1_to_q"
        lora |= {f"{key}.lora_up.weight": torch.randn(320, 4, generator=noise), f"{key}.lora_down.weight": torch.randn(4, 320, generator=noise)}
    write(folder / "lcm-lora-sdv1-5.safetensors", {name: value.half() for name, value in lora.items()}, {})


def write(path: Path, tensors: dict, zeros: dict) -> None:
    """A safetensors file of half precision; `zeros`, {name: shape}, lie at its end and take no disk space."""
    header, at = {}, 0
    for name, shape in [*((name, tuple(value.shape)) for name, value in tensors.items()), *zeros.items()]:
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            file.write(value.contiguous().numpy().tobytes())
        file.truncate(8 + len(text) + at)


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
