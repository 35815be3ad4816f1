"""MMFS, StyleGAN2's generator and its discriminator against a literal float64 implementation, made of weights by name.

Literal: each picture alone with weights of its own, convolutions as sums over taps, zeros inserted by hand, attention
written out.
"""

import math

import pytest
import torch

from portrait_atelier.stylegan.discriminator import TAPS, Discriminator, spread
from portrait_atelier.stylegan.generator import Generator, truncated
from portrait_atelier.stylegan.layers import ModulatedConv, ResBlock, Upsample
from portrait_atelier.stylegan.stylizer import Stylizer

K = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])).double() / 64
CHANNELS, WIDTH, DEPTH = (3, 4, 5, 6), 16, 2
SIZE = (32, 48)


def apart(a, b) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def lrelu(x):
    return torch.where(x > 0, x, 0.2 * x)


def correlate(x, weight, padding=0, stride=1):
    """x [I, H, W], weight [O, I, k, k]."""
    channels, height, width = x.shape
    size = weight.shape[-1]
    framed = x.new_zeros(channels, height + 2 * padding, width + 2 * padding)
    framed[:, padding : padding + height, padding : padding + width] = x
    rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    return sum(
        torch.einsum(
            "oi,ihw->ohw",
            weight[:, :, dy, dx],
            framed[:, dy : dy + stride * rows : stride, dx : dx + stride * columns : stride],
        )
        for dy in range(size)
        for dx in range(size)
    )


def fir(x, padding, kernel=K):
    return torch.cat([correlate(channel[None], kernel[None, None], padding) for channel in x])


def spaced(x):
    """Zeros between the pixels: [I, 2H - 1, 2W - 1]."""
    wide = x.new_zeros(len(x), 2 * x.shape[1] - 1, 2 * x.shape[2] - 1)
    wide[:, ::2, ::2] = x
    return wide


def up2(x):
    # Two zeros before and, with the one after the last pixel, two behind.
    return fir(spaced(x), 2, 4 * K)


class Literal:
    def __init__(self, network):
        self.state = {name: value.double() for name, value in network.state_dict().items()}
        self.levels = sum(name.endswith("b.conv.weight") and name.startswith("decoder") for name in self.state)

    def __getitem__(self, name):
        return self.state[name]

    def conv(self, x, name, padding=0, stride=1):
        weight = self[f"{name}.weight"]
        return correlate(x, weight / math.sqrt(weight.shape[1] * weight.shape[2] ** 2), padding, stride)

    def act(self, x, name):
        return math.sqrt(2) * lrelu(x + self[name][:, None, None])

    def conv_layer(self, x, name):
        return self.act(self.conv(x, f"{name}.0", self[f"{name}.0.weight"].shape[-1] // 2), f"{name}.1.bias")

    def res_block(self, x, name):
        main = self.conv_layer(x, f"{name}.conv1")
        main = self.act(self.conv(fir(main, 2), f"{name}.conv2.1", stride=2), f"{name}.conv2.2.bias")
        return (main + self.conv(fir(x, 1), f"{name}.skip.1", stride=2)) / math.sqrt(2)

    def linear(self, x, name, rate=1.0):
        return self[f"{name}.weight"] @ x * rate / math.sqrt(len(x)) + self[f"{name}.bias"] * rate

    def mapping(self, z, name, depth=DEPTH):
        x = z / math.sqrt((z**2).mean() + 1e-8)
        for number in range(1, depth + 1):
            x = math.sqrt(2) * lrelu(self.linear(x, f"{name}.{number}", 0.01))
        return x

    def modulated(self, x, name, w, demodulate, up):
        stored = self[f"{name}.weight"][0]
        weight = (
            stored
            / math.sqrt(stored.shape[1] * stored.shape[2] ** 2)
            * self.linear(w, f"{name}.modulation")[:, None, None]
        )
        if demodulate:
            weight = torch.stack([one / torch.sqrt((one**2).sum() + 1e-8) for one in weight])
        if not up:
            return correlate(x, weight, stored.shape[-1] // 2)
        return fir(correlate(spaced(x), weight.flip(2, 3), 2), 1, 4 * K)

    def styled(self, x, name, w, noise, up=False):
        x = self.modulated(x, f"{name}.conv", w, True, up) + self[f"{name}.noise.weight"] * noise
        return self.act(x, f"{name}.activate.bias")

    def rgb(self, x, name, w, below=None):
        x = self.modulated(x, f"{name}.conv", w, False, False) + self[f"{name}.bias"][0]
        return x if below is None else x + up2(below)

    def encode(self, x):
        x = self.conv_layer(x, "encoder.0")
        for number in range(1, self.levels + 1):
            x = self.res_block(x, f"encoder.{number}")
        return self.conv_layer(x, f"encoder.{self.levels + 1}")

    def decode(self, x, w, noise):
        """One picture: w [styles, style], a map of noise [1, h, w] for each convolution."""
        x = self.styled(x, "decoder0", w[0], noise[0])
        picture = self.rgb(x, "to_rgb0", w[1])
        for i in range(1, self.levels + 1):
            x = self.styled(x, f"decoder{i}a", w[2 * i - 1], noise[2 * i - 1], up=True)
            x = self.styled(x, f"decoder{i}b", w[2 * i], noise[2 * i])
            picture = self.rgb(x, f"to_rgb{i}", w[2 * i + 1], picture)
        return picture

    def generate(self, w, noise):
        x = self.styled(self["input.input"][0], "conv1", w[0], noise[0])
        picture = self.rgb(x, "to_rgb1", w[1])
        for i in range((len(noise) - 1) // 2):
            x = self.styled(x, f"convs.{2 * i}", w[2 * i + 1], noise[2 * i + 1], up=True)
            x = self.styled(x, f"convs.{2 * i + 1}", w[2 * i + 2], noise[2 * i + 2])
            picture = self.rgb(x, f"to_rgbs.{i}", w[2 * i + 3], picture)
        return picture

    def from_clip(self, feature, layers=4, heads=8):
        x = feature[None] + self["clip_mapper.position_embedding"]
        for name in (f"clip_mapper.transformer.layers.{number}" for number in range(layers)):
            q, k, v = self.affine(
                self.norm(x, f"{name}.norm1"), f"{name}.self_attn.in_proj_weight", f"{name}.self_attn.in_proj_bias"
            ).chunk(3, 1)
            size, found = x.shape[1] // heads, []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                logits = q[:, part] @ k[:, part].T / math.sqrt(size)
                weights = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
                found.append(weights @ v[:, part])
            x = x + self.affine(
                torch.cat(found, 1), f"{name}.self_attn.out_proj.weight", f"{name}.self_attn.out_proj.bias"
            )
            hidden = self.affine(self.norm(x, f"{name}.norm2"), f"{name}.linear1.weight", f"{name}.linear1.bias").clamp(
                min=0
            )
            x = x + self.affine(hidden, f"{name}.linear2.weight", f"{name}.linear2.bias")
        return lrelu(x)

    def affine(self, x, weight, bias):
        return x @ self[weight].T + self[bias]

    def norm(self, x, name):
        x = x - x.mean(1, keepdim=True)
        return x / torch.sqrt((x**2).mean(1, keepdim=True) + 1e-5) * self[f"{name}.weight"] + self[f"{name}.bias"]

    def judge(self, pictures, layers):
        """Logits [B, 1] and, for each picture, the outputs of all of `convs`."""
        features = []
        for x in pictures:
            found = [self.conv_layer(x, "convs.0")]
            for number in range(1, layers):
                found.append(self.res_block(found[-1], f"convs.{number}"))
            features.append(found)
        batch, group, logits = len(pictures), min(len(pictures), 4), []
        for b in range(batch):
            friends = torch.stack(
                [features[other][-1] for other in range(batch) if other % (batch // group) == b % (batch // group)]
            )
            deviation = torch.sqrt(((friends - friends.mean(0)) ** 2).mean(0) + 1e-8).mean()
            x = features[b][-1]
            x = self.conv_layer(torch.cat([x, deviation.expand(1, *x.shape[1:])]), "final_conv").reshape(-1)
            x = math.sqrt(2) * lrelu(self.linear(x, "final_linear.0"))
            logits.append(self.linear(x, "final_linear.1"))
        return torch.stack(logits), features


def randomised(network, seed=0):
    """All weights at random, biases and the strengths of noise too, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            rate = 100 if name.startswith(("mapping_z", "style.")) else 1
            parameter += rate * 0.3 * torch.randn(parameter.shape, generator=generator)
    return network.double().eval()


@pytest.fixture(scope="module")
def stylizer():
    return randomised(Stylizer(CHANNELS, WIDTH, clip_mapper=True, mapping_layers=DEPTH))


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def inputs(stylizer, batch=2):
    pictures = torch.tanh(normal(batch, 3, *SIZE))
    styles = normal(stylizer.styles, batch, WIDTH, seed=2)
    return pictures, styles, [noise.double() for noise in stylizer.noise_maps(batch, SIZE, 3)]


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return Stylizer(clip_mapper=True)


def expected_keys() -> dict[str, tuple]:
    """The table of the published files."""
    shapes = {
        "encoder.0.0.weight": (64, 3, 3, 3),
        "encoder.0.1.bias": (64,),
        "encoder.5.0.weight": (512, 512, 3, 3),
        "encoder.5.1.bias": (512,),
    }
    for number, (i, o) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
        shapes |= {
            f"encoder.{number}.{name}": shape
            for name, shape in {
                "conv1.0.weight": (i, i, 3, 3),
                "conv1.1.bias": (i,),
                "conv2.0.kernel": (4, 4),
                "conv2.1.weight": (o, i, 3, 3),
                "conv2.2.bias": (o,),
                "skip.0.kernel": (4, 4),
                "skip.1.weight": (o, i, 1, 1),
            }.items()
        }
    for number in range(1, 9):
        shapes |= {f"mapping_z.{number}.weight": (512, 512), f"mapping_z.{number}.bias": (512,)}
    widths = [
        ("decoder0", 512, 512),
        ("decoder1a", 512, 512),
        ("decoder1b", 512, 512),
        ("decoder2a", 512, 256),
        ("decoder2b", 256, 256),
        ("decoder3a", 256, 128),
        ("decoder3b", 128, 128),
        ("decoder4a", 128, 64),
        ("decoder4b", 64, 64),
    ]
    for name, i, o in widths:
        shapes |= {
            f"{name}.conv.weight": (1, o, i, 3, 3),
            f"{name}.conv.modulation.weight": (i, 512),
            f"{name}.conv.modulation.bias": (i,),
            f"{name}.noise.weight": (1,),
            f"{name}.activate.bias": (o,),
        }
        if name.endswith("a"):
            shapes[f"{name}.conv.blur.kernel"] = (4, 4)
    for number, i in enumerate([512, 512, 256, 128, 64]):
        shapes |= {
            f"to_rgb{number}.conv.weight": (1, 3, i, 1, 1),
            f"to_rgb{number}.conv.modulation.weight": (i, 512),
            f"to_rgb{number}.conv.modulation.bias": (i,),
            f"to_rgb{number}.bias": (1, 3, 1, 1),
        }
        if number:
            shapes[f"to_rgb{number}.upsample.kernel"] = (4, 4)
    shapes["clip_mapper.position_embedding"] = (10, 512)
    for number in range(4):
        shapes |= {
            f"clip_mapper.transformer.layers.{number}.{name}": shape
            for name, shape in {
                "self_attn.in_proj_weight": (1536, 512),
                "self_attn.in_proj_bias": (1536,),
                "self_attn.out_proj.weight": (512, 512),
                "self_attn.out_proj.bias": (512,),
                "linear1.weight": (2048, 512),
                "linear1.bias": (2048,),
                "linear2.weight": (512, 2048),
                "linear2.bias": (512,),
                "norm1.weight": (512,),
                "norm1.bias": (512,),
                "norm2.weight": (512,),
                "norm2.bias": (512,),
            }.items()
        }
    return shapes


def test_the_published_keys_and_shapes(full_size):
    expected = expected_keys()
    assert {name: tuple(value.shape) for name, value in full_size.state_dict().items()} == expected and len(
        expected
    ) == 170
    with torch.device("meta"):
        assert list(Stylizer().state_dict()) == [
            name for name in full_size.state_dict() if not name.startswith("clip_mapper.")
        ]
        assert len(Stylizer().state_dict()) == 121
    assert round(sum(weight.numel() for weight in full_size.parameters()) / 1e6, 2) == 31.29


def test_what_training_begins_with():
    torch.manual_seed(0)
    for name, value in Stylizer((8, 16, 32, 32), 64, clip_mapper=True).named_parameters():
        if name.startswith("clip_mapper.transformer"):
            continue  # torch's own
        if name.endswith("modulation.bias"):
            assert (value == 1).all(), name
        elif name.endswith(("bias", "noise.weight")):
            assert not value.any(), name
        elif value.numel() > 500:  # enough for its spread to be seen
            expected = 100 if name.startswith("mapping_z") else 1
            assert 0.85 * expected < value.std() < 1.15 * expected, name


@pytest.mark.parametrize("shared", [False, True])
def test_the_stylizer_is_the_literal_one(stylizer, shared):
    """Both styles of its own for each picture and one for all; before and after values are cut off."""
    literal, (pictures, styles, noise) = Literal(stylizer), inputs(stylizer)
    features = stylizer.encode(pictures)
    expected = torch.stack([literal.encode(picture) for picture in pictures])
    assert features.shape == (2, 6, 2, 3) and apart(features, expected) < 1e-10
    styles = styles[:, :1] if shared else styles
    expected = torch.stack(
        [literal.decode(expected[b], styles[:, 0 if shared else b], [maps[b] for maps in noise]) for b in range(2)]
    )
    bounded = expected.clamp(-1, 1)
    assert 0.02 < (expected != bounded).double().mean() < 0.98  # some values are cut off, not all
    assert apart(stylizer.decode_unbounded(features, styles, noise), expected) < 1e-10
    assert apart(stylizer(pictures, styles, noise), bounded) < 1e-10


@pytest.mark.parametrize("channels", [(4, 6), (3, 4, 6)])
def test_small_pictures_need_fewer_levels(channels):
    small, stride = randomised(Stylizer(channels, WIDTH, True, DEPTH)), 2 ** len(channels)
    literal, (pictures, styles, noise) = Literal(small), inputs(small)
    features = small.encode(pictures)
    assert features.shape == (2, 6, SIZE[0] // stride, SIZE[1] // stride)
    assert len(styles) == small.styles == 2 * len(channels) + 2 and len(noise) == small.styles - 1
    expected = torch.stack(
        [literal.decode(literal.encode(pictures[b]), styles[:, b], [maps[b] for maps in noise]) for b in range(2)]
    )
    assert apart(small.decode_unbounded(features, styles, noise), expected) < 1e-10
    z = normal(2, WIDTH)
    assert small.style_from_seed(z).shape == small.style_from_clip(z / z.norm(dim=1, keepdim=True)).shape == styles.shape
    with pytest.raises(ValueError, match=f"multiples of {stride}"):
        small.encode(pictures[..., 1:])


def test_both_mappings_are_the_literal_ones(stylizer):
    literal, z = Literal(stylizer), normal(2, WIDTH)
    styles = stylizer.style_from_seed(z)
    assert styles.shape == (10, 2, WIDTH)
    assert apart(styles, torch.stack([literal.mapping(one, "mapping_z") for one in z]).expand(10, -1, -1)) < 1e-10
    feature = z / z.norm(dim=1, keepdim=True)
    styles = stylizer.style_from_clip(feature)
    assert (
        styles.shape == (10, 2, WIDTH)
        and apart(styles, torch.stack([literal.from_clip(one) for one in feature], 1)) < 1e-10
    )


def test_mixed_styles(stylizer):
    a, b = normal(10, 2, WIDTH), normal(10, 2, WIDTH, seed=2)
    for first in range(1, 10):
        mixed = stylizer.mixed(a, b, first)
        assert torch.equal(mixed[:first], a[:first]) and torch.equal(mixed[first:], b[first:])
    for first in (0, 10):
        with pytest.raises(ValueError, match="1 to 9"):
            stylizer.mixed(a, b, first)


AFFECTED = [
    {"decoder0"},
    {"to_rgb0", "decoder1a"},
    {"decoder1b"},
    {"to_rgb1", "decoder2a"},
    {"decoder2b"},
    {"to_rgb2", "decoder3a"},
    {"decoder3b"},
    {"to_rgb3", "decoder4a"},
    {"decoder4b"},
    {"to_rgb4"},
]


def test_each_vector_of_a_style_reaches_its_layers_only(stylizer):
    pictures, styles, noise = inputs(stylizer, 1)
    features, seen = stylizer.encode(pictures), {}
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name.split(".")[0]: out}))
        for name, module in stylizer.named_modules()
        if name.endswith(".modulation")
    ]
    try:
        plain, before = stylizer.decode_unbounded(features, styles, noise), dict(seen)
        for j in range(10):
            changed = styles.clone()
            changed[j] += 1
            picture = stylizer.decode_unbounded(features, changed, noise)
            assert {name for name in seen if not torch.equal(seen[name], before[name])} == AFFECTED[j], j
            assert not torch.equal(picture, plain)
    finally:
        for handle in handles:
            handle.remove()


def test_noise_repeats_and_a_batch_is_its_pictures(stylizer):
    pictures, styles, noise = inputs(stylizer)
    again = stylizer.noise_maps(2, SIZE, 3)
    assert [tuple(maps.shape) for maps in noise] == [
        (2, 1, *size) for size in [(2, 3), *[(4, 6)] * 2, *[(8, 12)] * 2, *[(16, 24)] * 2, *[(32, 48)] * 2]
    ]
    assert all(torch.equal(a, b.double()) for a, b in zip(noise, again)) and not torch.equal(noise[8][0], noise[8][1])
    alone = stylizer.noise_maps(1, SIZE, 4)  # the second picture's noise is what seed + 1 gives
    assert all(torch.equal(a[1:], b.double()) for a, b in zip(noise, alone))
    assert torch.equal(stylizer.noise_maps(2, SIZE, 2**64 - 1)[0][1:], stylizer.noise_maps(1, SIZE, 0)[0])
    both = stylizer(pictures, styles, noise)
    assert torch.equal(both, stylizer(pictures, styles, noise))
    for b in range(2):
        one = stylizer(pictures[b : b + 1], styles[:, b : b + 1], [maps[b : b + 1] for maps in noise])
        assert apart(both[b : b + 1], one) < 1e-12
    fixed = [maps[:1] for maps in noise]
    assert (
        apart(
            stylizer(pictures, styles, fixed),
            stylizer(pictures, styles, [maps.expand(2, -1, -1, -1) for maps in fixed]),
        )
        < 1e-12
    )


def test_wrong_sizes_and_styles_are_refused(stylizer):
    with pytest.raises(ValueError, match="multiples of 16"):
        stylizer.encode(torch.zeros(1, 3, 32, 40))
    with pytest.raises(ValueError, match="10"):
        stylizer.decode(normal(3, 6, 1, 1), normal(10, 2, WIDTH))
    with pytest.raises(ValueError, match="phase 3/4"):
        Stylizer(CHANNELS, WIDTH).style_from_clip(torch.zeros(1, WIDTH))


def test_gradients_are_right():
    torch.manual_seed(0)
    x, w = normal(2, 3, 3, 4).requires_grad_(), normal(2, 4).requires_grad_()
    for up in (False, True):
        conv = ModulatedConv(3, 2, 3, 4, up=up).double()
        weights = [conv.weight, conv.modulation.weight, conv.modulation.bias]
        assert torch.autograd.gradcheck(lambda x, w, *_: conv(x, w), (x, w, *weights))
        assert torch.autograd.gradcheck(lambda x, w, *_: conv(x, w), (x, w[:1], *weights))
    assert torch.autograd.gradcheck(Upsample().double(), (x,))
    block, x = ResBlock(2, 2).double(), normal(1, 2, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *block.parameters()))
    assert torch.autograd.gradgradcheck(
        block, (x,), fast_mode=True
    )  # what the penalty on the discriminator's gradient needs


def test_gradients_of_the_decoder_are_those_of_the_literal_one(stylizer):
    pictures, styles, noise = inputs(stylizer)
    names = [name for name, _ in stylizer.named_parameters() if name.startswith(("decoder", "to_rgb"))]
    features = stylizer.encode(pictures).detach()
    stylizer.zero_grad()
    stylizer.decode_unbounded(features, styles[:, :1], noise).square().mean().backward()
    literal = Literal(stylizer)
    for name in names:
        literal.state[name] = literal[name].detach().clone().requires_grad_()
    found = torch.stack([literal.decode(features[b], styles[:, 0], [maps[b] for maps in noise]) for b in range(2)])
    found.square().mean().backward()
    parameters = dict(stylizer.named_parameters())
    for name in names:
        assert apart(parameters[name].grad, literal[name].grad) < 1e-8, name


@pytest.mark.parametrize("dtype, least", [(torch.float32, 100), (torch.bfloat16, 25), (torch.float16, 45)])
def test_other_precisions_stay_close(stylizer, dtype, least):
    """Decibels against float64. The weights here are rougher than trained ones; at full size: docs/benchmarks.md."""
    pictures, styles, noise = inputs(stylizer)
    exact = stylizer(pictures, styles, noise)
    found = stylizer(pictures.to(dtype), styles, noise)
    assert found.dtype == dtype
    assert -10 * math.log10(((found.double() - exact) / 2).square().mean().item()) > least


def test_half_precision_survives_small_weights():
    """Squares of the weights are summed in float32: float16 would lose them."""
    conv = ModulatedConv(4, 4, 3, 8)
    with torch.no_grad():
        conv.weight *= 1e-3
        x, w = torch.randn(2, 4, 8, 8), torch.randn(2, 8)
        found = conv(x.half(), w).float()
        assert apart(found, conv(x, w)) < 0.01


@pytest.fixture(scope="module")
def generator():
    return randomised(Generator((6, 5, 4), WIDTH, DEPTH))


def test_the_generator_is_the_literal_one(generator):
    literal, z = Literal(generator), normal(2, WIDTH)
    w = generator.map(z)
    assert apart(w, torch.stack([literal.mapping(one, "style") for one in z])) < 1e-10
    styles = torch.cat([generator.styles(w)[:3], generator.styles(w.flip(0))[3:]])
    fresh = [maps.double() for maps in generator.noise_maps(2, 5)]
    stored = [literal[f"noises.noise_{number}"].expand(2, -1, -1, -1) for number in range(5)]
    for given, noise in ((fresh, fresh), (None, stored)):
        expected = torch.stack([literal.generate(styles[:, b], [maps[b] for maps in noise]) for b in range(2)])
        found = generator(styles, given)
        assert found.shape == (2, 3, 16, 16) and apart(found, expected) < 1e-10
    one = generator(styles[:, :1], [maps[:1] for maps in fresh])
    assert apart(one, generator(styles, fresh)[:1]) < 1e-12
    with pytest.raises(ValueError, match="6"):
        generator(styles[:4])


def test_the_generators_published_layout():
    with torch.device("meta"):
        state = Generator().state_dict()
    names = {name.split(".")[0] for name in state}
    assert names == {"style", "input", "conv1", "to_rgb1", "convs", "to_rgbs", "noises"} and len(state) == 153
    assert state["convs.6.conv.weight"].shape == (1, 512, 512, 3, 3) and state["convs.13.conv.weight"].shape == (
        1,
        64,
        64,
        3,
        3,
    )
    assert (
        state["noises.noise_0"].shape[-1] == 4
        and state["noises.noise_14"].shape[-1] == 512
        and state["to_rgbs.6.upsample.kernel"].shape == (4, 4)
    )


def test_truncation(generator):
    mean = generator.mean_w(64)
    w = generator.map(normal(2, WIDTH))
    assert (
        mean.shape == (1, WIDTH)
        and torch.equal(mean, generator.mean_w(64))
        and not torch.equal(mean, generator.mean_w(64, seed=1))
    )
    assert torch.equal(truncated(w, mean, 1.0), w) and torch.equal(truncated(w, mean, 0.0), mean.expand(2, -1))
    assert apart(truncated(w, mean, 0.7), mean + 0.7 * (w - mean)) < 1e-12


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_discriminator_is_the_literal_one(batch):
    network = randomised(Discriminator((3, 4, 5)))
    pictures = torch.tanh(normal(batch, 3, 16, 16))
    logits, features = Literal(network).judge(pictures, 3)
    assert network.size == 16 and network(pictures).shape == (batch, 1) and apart(network(pictures), logits) < 1e-10
    for number, found in zip((0, 2), network.features(pictures, (0, 2)), strict=True):
        assert apart(found, torch.stack([one[number] for one in features])) < 1e-10
    with pytest.raises(ValueError, match="16 x 16"):
        network(pictures[..., :8])


def test_the_discriminators_published_layout_and_groups():
    with torch.device("meta"):
        network = Discriminator()
        assert (
            network.size == 512
            and network.final_linear[0].weight.shape == (512, 8192)
            and network.final_conv[0].weight.shape[1] == 513
        )
        assert [layer.skip[1].weight.shape[0] for layer in network.convs[1:]] == [
            128,
            256,
            512,
            512,
            512,
            512,
            512,
        ] and len(network.state_dict()) == 57
    small = Discriminator((2,) * 7)
    assert TAPS == (1, 3, 4, 5) and [len(x[0, 0]) for x in small.features(torch.zeros(1, 3, 256, 256))] == [
        128,
        32,
        16,
        8,
    ]
    x = normal(6, 2, 3, 3)  # no multiple of four: groups of three
    assert torch.allclose(
        spread(x)[:, 2, 0, 0],
        torch.stack([x[b::2].var(0, unbiased=False).add(1e-8).sqrt().mean() for b in (0, 1)]).repeat(3),
    )
