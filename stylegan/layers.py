"""The layers of StyleGAN2 (Karras et al., 2020) with the weights' names of its common PyTorch files.

Weights are stored with unit spread and scaled as they are used (equalised learning rate). Padding is with zeros.
"""

import math

import torch
from torch import nn
from torch.nn import functional

SLOPE, GAIN = 0.2, math.sqrt(2)


def act(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """sqrt(2) * leaky ReLU of x + bias, in the place of x; the bias runs along dimension 1."""
    # A new map costs a CPU several times what is computed on it. The gain may stand before the leaky ReLU, whose result
    # the backward pass needs unchanged.
    return functional.leaky_relu(x.add_(bias.to(x).view(-1, *[1] * (x.ndim - 2))).mul_(GAIN), SLOPE, inplace=True)


def blur_kernel(gain: float = 1.0) -> torch.Tensor:
    """The low pass of all resampling: the outer product of (1, 3, 3, 1), [4, 4], with the sum `gain`."""
    line = (1, 3, 3, 1)
    return torch.tensor([[a * b * gain / 64 for a in line] for b in line])


def normal(*shape: int, spread: float = 1.0) -> nn.Parameter:
    """Random weights; none on the meta device, where the mere attempt imports torch's compiler, which takes seconds."""
    weight = torch.empty(shape)
    return nn.Parameter(weight if weight.is_meta else weight.normal_(std=spread))


def per_channel(kernel: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return kernel.to(x).expand(x.shape[1], 1, -1, -1)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """x in the memory layout in which all layers here are fastest: transposed convolutions four times on a CPU."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type in ("cpu", "cuda") else x


class Fir(nn.Module):
    """The low pass in each channel after `padding` zeros on every side: [B, C, H, W] -> [B, C, H + 2p - 3, W + 2p - 3]."""

    def __init__(self, padding: int, gain: float = 1.0):
        super().__init__()
        self.padding, self.gain = padding, gain
        self.register_buffer("kernel", blur_kernel(gain))

    def forward(self, x):
        return functional.conv2d(x, per_channel(self.kernel, x), padding=self.padding, groups=x.shape[1])


class Upsample(nn.Module):
    """Twice the size: zeros between the pixels, then the low pass with sum 4."""

    gain = 4.0

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", blur_kernel(self.gain))

    def forward(self, x):
        return functional.conv_transpose2d(x, per_channel(self.kernel, x), stride=2, padding=1, groups=x.shape[1])


class PixelNorm(nn.Module):
    """Each vector [B, C] is brought to a mean square of 1."""

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """[B, inputs] -> [B, outputs]. `rate` slows learning: what is stored is 1/rate times what acts."""

    def __init__(self, inputs: int, outputs: int, rate: float = 1.0, bias: float = 0.0, activated: bool = False):
        super().__init__()
        self.weight = normal(outputs, inputs, spread=1 / rate)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))
        self.rate, self.scale, self.activated = rate, rate / math.sqrt(inputs), activated

    def forward(self, x):
        weight, bias = self.weight.to(x) * self.scale, self.bias.to(x) * self.rate
        if self.activated:
            return act(functional.linear(x, weight), bias)
        return functional.linear(x, weight, bias)


class EqualConv(nn.Module):
    """A convolution without bias."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0):
        super().__init__()
        self.weight = normal(outputs, inputs, size, size)
        self.scale, self.stride, self.padding = 1 / math.sqrt(inputs * size**2), stride, padding

    def forward(self, x):
        return functional.conv2d(x, self.weight.to(x) * self.scale, stride=self.stride, padding=self.padding)


class BiasAct(nn.Module):
    """`act` with a learned bias."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return act(x, self.bias)


class ConvLayer(nn.Sequential):
    """Convolution and activation; `down`: the low pass and a convolution of stride 2, to half the size."""

    def __init__(self, inputs: int, outputs: int, size: int, down: bool = False, activated: bool = True):
        parts = [Fir((size + 1) // 2), EqualConv(inputs, outputs, size, stride=2)] if down else [EqualConv(inputs, outputs, size, padding=size // 2)]
        super().__init__(*parts, *[BiasAct(outputs)] * activated)


class ResBlock(nn.Module):
    """[B, inputs, H, W] -> [B, outputs, H/2, W/2]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = ConvLayer(inputs, inputs, 3)
        self.conv2 = ConvLayer(inputs, outputs, 3, down=True)
        self.skip = ConvLayer(inputs, outputs, 1, down=True, activated=False)

    def forward(self, x):
        main = self.conv2(self.conv1(x))
        return self.skip(x).add_(main).div_(math.sqrt(2))


class ModulatedConv(nn.Module):
    """A convolution whose inputs are scaled by the style and, demodulated, its outputs back to unit spread.

    forward: x [B, inputs, H, W], w [B, style], or [1, style] for one style of the whole batch. `up` doubles the size.
    """

    def __init__(self, inputs: int, outputs: int, size: int, style: int, demodulate: bool = True, up: bool = False):
        super().__init__()
        self.weight = normal(1, outputs, inputs, size, size)
        self.modulation = EqualLinear(style, inputs, bias=1.0)
        self.scale, self.demodulate, self.up = 1 / math.sqrt(inputs * size**2), demodulate, up
        if up:
            self.blur = Fir(padding=1, gain=4.0)

    def forward(self, x, w):
        s, weight = self.modulation(w.to(x)) * self.scale, self.weight[0].to(x)
        d = None
        if self.demodulate:
            # In float32 at least: half precision cannot hold the squares of small weights.
            wide = torch.promote_types(x.dtype, torch.float32)
            power = torch.linalg.vector_norm(weight, dim=(2, 3), dtype=wide).square()
            d = torch.rsqrt(s.to(wide).square() @ power.T + 1e-8).to(x)
        # Scaling inputs and outputs takes the place of a set of weights for each picture: one convolution for the batch. One
        # style for all is cheaper still in the weights, which are fewer than the pixels of large layers.
        if len(s) == 1:
            factors = s if d is None else d.T * s
            return self.convolve(x, weight * factors[:, :, None, None])
        x = self.convolve(x * s[:, :, None, None], weight)
        if d is None:
            return x
        d = d[:, :, None, None]
        return x * d if x.requires_grad else x.mul_(d)     # d's gradient needs the convolution's result as it was

    def convolve(self, x, weight):
        if self.up:
            return self.blur(functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        return functional.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Noise(nn.Module):
    """Adds noise [B, 1, H, W] or [1, 1, H, W], the same in all channels, with a learned strength; in the place of x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, noise):
        return x if noise is None else x.add_(self.weight.to(x) * noise.to(x))


class StyledConv(nn.Module):
    """Modulated 3 x 3 convolution, noise, activation."""

    def __init__(self, inputs: int, outputs: int, style: int, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, style, up=up)
        self.noise = Noise()
        self.activate = BiasAct(outputs)

    def forward(self, x, w, noise=None):
        return self.activate(self.noise(self.conv(x, w), noise))


class ToRGB(nn.Module):
    """A layer's share of the picture, on top of the smaller picture `below` [B, 3, H/2, W/2]."""

    def __init__(self, inputs: int, style: int, up: bool = True):
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if up:
            self.upsample = Upsample()

    def forward(self, x, w, below=None):
        x = self.conv(x, w).add_(self.bias.to(x))
        return x if below is None else x.add_(self.upsample(below))


def draw_noise(sizes, batch: int, seed: int | torch.Generator, device="cpu") -> list[torch.Tensor]:
    """Noise maps [batch, 1, h, w] for sizes (h, w).

    With a seed, picture b has the noise that it would have alone with seed + b, whatever the device.
    """
    if isinstance(seed, torch.Generator):
        return [torch.randn(batch, 1, *size, generator=seed, device=seed.device).to(device) for size in sizes]
    generators = [torch.Generator().manual_seed((seed + b) % 2**64) for b in range(batch)]
    return [torch.stack([torch.randn(1, *size, generator=generator) for generator in generators]).to(device) for size in sizes]
