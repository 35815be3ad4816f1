"""MMFS computed straightforwardly, and what the comparison with it measures: CPU time in turn, memory, precision."""

import contextlib
import math
import time
from operator import truediv
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from ..stylegan import layers, stylizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def grouped(self, x, w):
    """A set of weights for each picture, all pictures in one grouped convolution."""
    batch, _, height, width = x.shape
    style = self.modulation(w.to(x).expand(batch, -1)).view(batch, 1, -1, 1, 1)
    weight = self.scale * self.weight * style
    if self.demodulate:
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    x, size = x.reshape(1, -1, height, width), weight.shape[-1]
    if self.up:
        weight = weight.transpose(1, 2).reshape(-1, weight.shape[1], size, size)
        x = functional.conv_transpose2d(x, weight, stride=2, groups=batch)
        return self.blur(x.view(batch, -1, *x.shape[2:]))
    x = functional.conv2d(x, weight.reshape(-1, *weight.shape[2:]), padding=size // 2, groups=batch)
    return x.view(batch, -1, height, width)


def single_channels(x, kernel, padding):
    """The low pass with every channel as a picture of its own."""
    out = functional.conv2d(
        functional.pad(x, padding).reshape(-1, 1, x.shape[2] + sum(padding[2:]), x.shape[3] + sum(padding[:2])),
        kernel[None, None].to(x),
    )
    return out.view(*x.shape[:2], *out.shape[2:])


def upsampled(self, x):
    batch, channels, height, width = x.shape
    spaced = functional.pad(x.view(batch, channels, height, 1, width, 1), (0, 1, 0, 0, 0, 1)).view(
        batch, channels, 2 * height, 2 * width
    )
    return single_channels(spaced, self.kernel, (2, 1, 2, 1))


GROUPED = {
    layers.ModulatedConv: grouped,
    layers.BiasAct: lambda self, x: functional.leaky_relu(x + self.bias.view(1, -1, 1, 1), layers.SLOPE) * layers.GAIN,
    layers.Noise: lambda self, x, noise: x if noise is None else x + self.weight * noise,
    layers.ResBlock: lambda self, x: (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2),
}
SINGLE = {layers.Fir: lambda self, x: single_channels(x, self.kernel, (self.padding,) * 4), layers.Upsample: upsampled}


@contextlib.contextmanager
def straightforward(single: bool):
    """The network in usual memory layout, with grouped convolutions and no work in place; the low pass in one
    depthwise convolution, or `single`, channel by channel, as the published code has it on a CPU."""
    with contextlib.ExitStack() as stack:
        for kind, forward in (GROUPED | (SINGLE if single else {})).items():
            stack.enter_context(mock.patch.object(kind, "forward", forward))
        stack.enter_context(mock.patch.object(stylizer, "channels_last", lambda x: x))
        yield


WAYS = {
    "ours": contextlib.nullcontext,
    "grouped": lambda: straightforward(False),
    "published": lambda: straightforward(True),
}


def inputs(network, size: int, batch: int, styles: int):
    """Pictures, styles and noise of random numbers."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(batch, 3, size, size, generator=generator) * 2 - 1
    return (
        pictures,
        network.style_from_seed(torch.randn(styles, network.style, generator=generator)),
        network.noise_maps(batch, (size, size), 0),
    )


@torch.inference_mode(False)
def random_network(tiny: bool) -> stylizer.Stylizer:
    torch.manual_seed(0)
    network = stylizer.Stylizer((8, 16, 32, 64), 64) if tiny else stylizer.Stylizer()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("noise.weight"):
                weight.fill_(0.1)  # as strong as in trained networks
            elif name.endswith("bias") and "modulation" not in name and not name.startswith("mapping"):
                weight.normal_(std=0.1)
    return network.requires_grad_(False).eval()


def median(values):
    values = sorted(values)
    return values[len(values) // 2]


def in_turn(run, rounds: int, say) -> dict:
    """CPU seconds of run() in each way, in turn after an unmeasured round; ratios to ours; how far results differ."""
    times, results = {name: [] for name in WAYS}, {}
    for number in range(rounds + 1):
        for name, way in WAYS.items():
            say(f"{name}, round {number} of {rounds}")
            with way():
                begin = time.process_time()
                results[name] = run()
                if number:
                    times[name].append(time.process_time() - begin)
    ours = results["ours"]
    return {
        name: {
            "cpu_seconds": median(times[name]),
            "x_ours": median(map(truediv, times[name], times["ours"])),
            "differs_by": (results[name] - ours).abs().max().item(),
        }
        for name in WAYS
    }


def forward(network, size: int, batch: int, styles: int, decoder: bool, rounds: int, say) -> dict:
    """A forward pass of the whole network or of its decoder alone."""
    with torch.inference_mode():
        pictures, style, noise = inputs(network, size, batch, styles)
        features = network.encode(pictures) if decoder else None
        return in_turn(
            lambda: network.decode(features, style, noise) if decoder else network(pictures, style, noise), rounds, say
        )


def trained(network) -> list[torch.nn.Parameter]:
    """What few-shot training trains: decoder and RGB."""
    return [
        weight.requires_grad_() for name, weight in network.named_parameters() if name.startswith(("decoder", "to_rgb"))
    ]


@torch.inference_mode(False)
def step(network, size: int, batch: int, rounds: int, say) -> dict:
    """Forward and backward pass of the decoder as in few-shot training, one style for all; gradients are compared."""
    pictures, style, noise = inputs(network, size, batch, 1)
    with torch.no_grad():
        features = network.encode(pictures)
    weights = trained(network)

    def run():
        gradients = torch.autograd.grad(network.decode_unbounded(features, style, noise).square().mean(), weights)
        return torch.cat([gradient.flatten() for gradient in gradients])

    try:
        found = in_turn(run, rounds, say)
        for way in found.values():
            way["differs_by"] /= run().abs().max().item()
        return found
    finally:
        network.requires_grad_(False)


def sweep(network, size: int, styles: int) -> dict:
    """Encoder and decoder calls, and CPU seconds, of one photo in several styles, encoded once or for each style."""
    calls = {"encode": 0, "decode": 0}
    handles = [
        network.encoder.register_forward_hook(lambda *_: calls.update(encode=calls["encode"] + 1)),
        network.decoder0.register_forward_hook(lambda *_: calls.update(decode=calls["decode"] + 1)),
    ]
    found = {}
    with torch.inference_mode():
        picture, style, noise = inputs(network, size, 1, styles)
        for name in ("warm-up", "once", "each time"):
            calls.update(encode=0, decode=0)
            begin = time.process_time()
            features = None
            for number in range(styles):
                features = features if features is not None and name == "once" else network.encode(picture)
                network.decode(features, style[:, number : number + 1], noise)
            found[name] = {**calls, "cpu_seconds": time.process_time() - begin}
    for handle in handles:
        handle.remove()
    del found["warm-up"]
    return found


@torch.inference_mode(False)
def memory(tiny: bool, size: int, micro_batch: int) -> dict[str, int]:
    """Bytes that the decoder keeps for the backward pass, in each way, counted on tensors without content."""
    found = {}
    for name, way in WAYS.items():
        with FakeTensorMode(), way():
            network = stylizer.Stylizer((8, 16, 32, 64), 64) if tiny else stylizer.Stylizer()
            network.requires_grad_(False)
            own, kept = {weight.untyped_storage()._cdata for weight in network.parameters()}, {}
            trained(network)
            features = torch.zeros(micro_batch, network.channels[-1], size // 16, size // 16)
            noise = [torch.zeros(micro_batch, 1, *shape) for shape in network.noise_sizes(size, size)]

            def keep(tensor, kept=kept):
                # The tensor too, or its number is given again.
                kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes(), tensor
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                picture = network.decode(features, torch.zeros(network.styles, 1, network.style), noise)
            found[name] = sum(bytes_ for number, (bytes_, _) in kept.items() if number not in own)
            del picture
    return found


def precision(network, size: int) -> dict[str, float]:
    """Decibels of a picture in each type against float64; its range of 2 is the signal."""
    with torch.inference_mode():
        pictures, style, noise = inputs(network, size, 1, 1)
        exact = network(pictures.double(), style.double(), noise)
        return {
            str(dtype).removeprefix("torch."): -10
            * math.log10(((network(pictures.to(dtype), style, noise).double() - exact) / 2).square().mean().item())
            for dtype in DTYPES
        }


def frames_per_second(network, device, size: int, batch: int, rounds: int) -> dict[str, float]:
    """On a GPU: a batch of video frames in one style, each type, as it is and compiled."""
    pictures, style, noise = inputs(network, size, batch, 1)
    pictures, style, noise = pictures.to(device), style.to(device), [maps[:1].to(device) for maps in noise]
    network, found = network.to(device), {}
    for dtype in DTYPES:
        for name, run in (("", network), (", compiled", torch.compile(network))):
            with torch.inference_mode():
                times = []
                for _ in range(rounds + 2):
                    torch.cuda.synchronize(device)
                    begin = time.perf_counter()
                    run(pictures.to(dtype), style, noise)
                    torch.cuda.synchronize(device)
                    times.append(time.perf_counter() - begin)
            found[f"{str(dtype).removeprefix('torch.')}{name}"] = batch / median(times[2:])
    network.to("cpu")
    return found
