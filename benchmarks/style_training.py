"""What training a style LoRA costs: memory and FLOPs per model and picture size, counted; time per step, measured.

Run by `python3 atelier.py bench style_training`. It needs no weights and no GPU: memory and FLOPs are counted on tensors without
content, bf16 as on a GPU. Counted are weights, adapters with their optimizer, and what a forward pass keeps for the backward
pass; not counted are CUDA's own and the working memory of single operations. FLOPs are those of products, convolutions and
attention. --time takes a step of SD1.5 at full size on this device, beside a forward pass of the same network.
"""

import argparse
import contextlib
import json
import time
import types
from pathlib import Path

import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..host import training as host
from ..training import style_lora as maths

SD = dict(image_size=32, in_channels=4, out_channels=4, model_channels=320, channel_mult=[1, 2, 4, 4], num_res_blocks=[2] * 4,
          transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1, transformer_depth_output=[1] * 9 + [0] * 3, use_spatial_transformer=True,
          adm_in_channels=None, legacy=False, use_temporal_attention=False, use_temporal_resblock=False)
MODELS = {
    "SD1.5": dict(SD, context_dim=768, use_linear_in_transformer=False, num_heads=8, num_head_channels=-1),
    "SD2.1": dict(SD, context_dim=1024, use_linear_in_transformer=True, num_heads=-1, num_head_channels=64),
    "SDXL": dict(SD, channel_mult=[1, 2, 4], num_res_blocks=[2] * 3, transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10,
                 transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], context_dim=2048, use_linear_in_transformer=True, num_heads=-1,
                 num_head_channels=64, num_classes="sequential", adm_in_channels=2816),
}
CASES = [("SD1.5", 512), ("SD2.1", 512), ("SD2.1", 768), ("SDXL", 1024)]
GIB = 2**30


class Step:
    """A training step of a UNet of full size, without a picture: on tensors without content inside FakeTensorMode, else on random ones."""

    def __init__(self, model: str, side: int, targets: str = "qkv", rank: int = 16, checkpointing: bool = False, device: str = "cpu", kind=torch.bfloat16):
        spec, to = MODELS[model], dict(device=device, dtype=kind)
        self.unet = UNetModel(**spec, **to, operations=comfy.ops.disable_weight_init).requires_grad_(False)
        for weight in self.unet.parameters():
            weight.normal_(std=0.02)
        if checkpointing:
            host.recompute_blocks(self.unet)
        self.adapters = maths.Adapters(host.target_modules(types.SimpleNamespace(diffusion_model=self.unet), targets), rank, torch.Generator())
        if device != "cpu":  # tensors without content cannot be moved, and need not be
            self.adapters.to(device)
        self.latent, self.timestep = torch.zeros(1, 4, side // 8, side // 8, **to), torch.tensor([500.0], device=device)
        self.more = {"context": torch.zeros(1, 77, spec["context_dim"], **to)}
        if spec["adm_in_channels"]:
            self.more["y"] = torch.zeros(1, spec["adm_in_channels"], **to)

    def forward(self) -> torch.Tensor:
        return self.unet(self.latent, self.timestep, transformer_options={"optimized_attention_override": host._differentiable}, **self.more)

    def __call__(self) -> None:
        with self.adapters.attached():
            self.forward().float().square().mean().backward()


def memory(model: str, side: int, targets: str = "qkv", rank: int = 16, checkpointing: bool = False) -> dict:
    """Of one training step on a picture of `side` pixels: numbers of modules and parameters, bytes of weights, adapters and kept tensors."""
    with torch.inference_mode(False), FakeTensorMode():
        step = Step(model, side, targets, rank, checkpointing)
        unet, adapters = step.unet, step.adapters
        kept, weights = {}, {p.untyped_storage()._cdata for p in (*unet.parameters(), *adapters.parameters())}

        def keep(tensor):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes(), tensor  # the tensor too, or its number is given again
            return tensor

        with adapters.attached(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step.forward()
    parameters = sum(p.numel() for p in adapters.parameters())
    return {"modules": len(adapters.pairs), "parameters": parameters, "weights": 2 * sum(p.numel() for p in unet.parameters()),
            "adapters": 4 * 4 * parameters,  # float32: values, gradients, AdamW's two moments
            "kept": sum(size for number, (size, _) in kept.items() if number not in weights)}


def flops(model: str, side: int, checkpointing: bool = False) -> dict[str, int]:
    """FLOPs of a forward pass without adapters, and of a training step."""
    found = {}
    with torch.inference_mode(False), FakeTensorMode():
        step = Step(model, side, checkpointing=checkpointing)
        for name, run in (("forward", torch.no_grad()(step.forward)), ("step", step)):
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the counter knows its products, not the CPU's fused kernel
                run()
            found[name] = counter.get_total_flops()
    return found


def seconds(model: str, side: int, checkpointing: bool, rounds: int) -> dict[str, list[float]]:
    """Seconds of forward passes and of training steps in turn, after one of each."""
    device = comfy.model_management.get_torch_device()
    kind = torch.float32 if device.type == "cpu" else torch.bfloat16
    wait, clock = (lambda: None, time.process_time) if device.type == "cpu" else (torch.cuda.synchronize, time.perf_counter)
    found = {"forward": [], "step": []}
    with torch.inference_mode(False):
        step = Step(model, side, checkpointing=checkpointing, device=str(device), kind=kind)
        for _ in range(rounds + 1):
            for name, run in (("forward", torch.no_grad()(step.forward)), ("step", step)):
                wait()
                begin = clock()
                run()
                wait()
                found[name].append(clock() - begin)
    return {name: values[1:] for name, values in found.items()}


def demo_seconds(steps: int = 20) -> float:
    """CPU seconds per training step of the demo model at 256 pixels, on one thread."""
    from ..demo.measure import Studio

    studio = Studio()
    latent = studio.encode(torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
    with torch.inference_mode(False):
        network = host.Network(studio.model, [[latent.clone()]], studio.prompt("portrait"), checkpointing=False)
        adapters = maths.Adapters(host.target_modules(network.inner, "qkv"), 16, torch.Generator().manual_seed(0))
        prediction, alphas = host.schedule(studio.model)
        times = []
        with adapters.attached(), contextlib.closing(network):
            maths.train(network.predict, adapters, network.pictures, alphas, prediction=prediction, steps=steps, learning_rate=1e-3, window=1,
                        generator=torch.Generator().manual_seed(0), on_step=lambda *_: times.append(time.process_time()))
    gaps = sorted(b - a for a, b in zip(times, times[1:]))
    return gaps[len(gaps) // 2]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("atelier.py bench style_training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write all numbers there")
    parser.add_argument("--time", type=int, default=0, metavar="N", help="also time N steps of SD1.5 at 512 pixels, full size; minutes on a CPU (default: 0)")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    report = {"cases": []}
    print("| Model, side | modules | parameters, million | weights GiB | adapters and AdamW GiB | kept for the backward pass GiB | with checkpointing "
          "| step, forward passes | with checkpointing |\n" + "|---" * 9 + "|")
    for model, side in CASES:
        plain, less = ({**memory(model, side, checkpointing=on), **flops(model, side, on)} for on in (False, True))
        report["cases"].append({"model": model, "side": side, **plain, "kept with checkpointing": less["kept"], "step with checkpointing": less["step"]})
        print(f"| {model}, {side} | {plain['modules']} | {plain['parameters'] / 1e6:.2f} | {plain['weights'] / GIB:.2f} | {plain['adapters'] / GIB:.2f} "
              f"| {plain['kept'] / GIB:.2f} | {less['kept'] / GIB:.2f} | {plain['step'] / plain['forward']:.2f} | {less['step'] / less['forward']:.2f} |", flush=True)
    for on in (False, True) if options.time else ():
        spent = report[f"seconds, SD1.5 at 512{', checkpointing' if on else ''}"] = seconds("SD1.5", 512, on, options.time)
        ratios = sorted(a / b for a, b in zip(spent["step"], spent["forward"]))
        print(f"SD1.5, 512{', checkpointing' if on else ''}: a step takes {ratios[len(ratios) // 2]:.2f} forward passes, {min(spent['step']):.2f} s", flush=True)
    report["demo seconds per step"] = demo_seconds()
    print(f"\nDemo model, 256: {report['demo seconds per step']:.3f} CPU seconds per step on one thread.")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
