"""Files of MMFS and StyleGAN2: every layout gives the same network, and whatever else is refused in words."""

import argparse
import pickle

import pytest
import safetensors.torch
import torch

from portrait_atelier.stylegan import checkpoints
from portrait_atelier.stylegan.discriminator import Discriminator
from portrait_atelier.stylegan.generator import Generator
from portrait_atelier.stylegan.stylizer import Stylizer


def stylizer(mapper=True, seed=0):
    torch.manual_seed(seed)
    return Stylizer((3, 4, 5, 6), 16, clip_mapper=mapper, mapping_layers=2, mapper_layers=1)


def generator(channels=(3, 4, 5), seed=0):
    torch.manual_seed(seed)
    return Generator(channels, 8, 3)


def judge():
    torch.manual_seed(7)
    return Discriminator((3, 4, 5))


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def prefixed(state):
    return {f"module.{key}": value for key, value in state.items()}


def training_file(state):
    other = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    optimizer = {"state": {0: {"step": 5, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    return {
        "G_model": other,
        "D_model": judge().state_dict(),
        "G_ema_model": state,
        "G_optimizer": optimizer,
        "epoch": 3,
        "total_steps": 90_000,
    }


LAYOUTS = {
    "flat": lambda state: state,
    "flat, parallel": prefixed,
    "training": training_file,
    "training, parallel": lambda state: training_file(prefixed(state)) | {"D_model": prefixed(judge().state_dict())},
    "only the averaged": lambda state: {"G_ema_model": state},
    "state_dict": lambda state: {"state_dict": state},
    "no low passes": lambda state: {key: value for key, value in state.items() if not key.endswith(".kernel")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("old", [False, True])
def test_every_layout_gives_the_same_stylizer(tmp_path, layout, old):
    state, path = stylizer().state_dict(), tmp_path / "mmfs.pt"
    torch.save(LAYOUTS[layout](dict(state)), path, _use_new_zipfile_serialization=not old)
    found = checkpoints.read(path)
    assert (found.kind, found.phase, found.metadata) == ("stylizer", 3, {}) and equal(dict(state), found.state)
    assert (found.discriminator is None) == ("training" not in layout)
    network = checkpoints.network(found)
    assert (
        network.channels == (3, 4, 5, 6)
        and network.style == 16
        and not network.training
        and not any(p.requires_grad for p in network.parameters())
    )
    assert equal(dict(network.state_dict()), dict(state))
    if found.discriminator:
        assert equal(dict(checkpoints.discriminator(found).state_dict()), dict(judge().state_dict()))
    else:
        with pytest.raises(ValueError, match="D_model"):
            checkpoints.discriminator(found)


def test_the_network_does_not_write_into_the_checkpoint(tmp_path):
    torch.save(stylizer().state_dict(), tmp_path / "mmfs.pt")
    found = checkpoints.read(tmp_path / "mmfs.pt")
    with torch.no_grad():
        checkpoints.network(found).to_rgb0.bias += 1
    assert not found.state["to_rgb0.bias"].any()
    assert checkpoints.network(found, torch.bfloat16).to_rgb0.bias.dtype == torch.bfloat16


def test_the_phase(tmp_path):
    path = tmp_path / "mmfs.safetensors"
    checkpoints.save(path, stylizer(mapper=False).state_dict())
    found = checkpoints.read(path)
    assert found.phase == 2 and checkpoints.network(found).clip_mapper is None
    checkpoints.save(path, stylizer().state_dict(), {"phase": 4, "prompt": "pop art"})
    assert checkpoints.read(path).phase == 4 and checkpoints.read(path).metadata == {"phase": "4", "prompt": "pop art"}


@pytest.mark.parametrize(
    "layout",
    [
        lambda g: {"g_ema": g},
        lambda g: {"g": generator(seed=1).state_dict(), "d": judge().state_dict(), "g_ema": g},
        lambda g: {"g": g, "latent_avg": torch.zeros(8)},
        lambda g: g,
        prefixed,
        lambda g: {"g_ema": g, "args": argparse.Namespace(size=16, path="somewhere"), "ada_aug_p": 0.5},
    ],
)
def test_every_layout_gives_the_same_generator(tmp_path, layout):
    made = generator()
    torch.save(layout(dict(made.state_dict())), tmp_path / "stylegan2.pt")
    found = checkpoints.read(tmp_path / "stylegan2.pt")
    assert (found.kind, found.phase) == ("generator", None)
    network = checkpoints.network(found)
    assert (network.channels, network.width, network.size) == ((3, 4, 5), 8, 16) and equal(
        dict(network.state_dict()), dict(made.state_dict())
    )


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_file_never_runs(tmp_path, save):
    path, trace = tmp_path / "evil.pt", tmp_path / "ran"
    save({"G_ema_model": dict(stylizer().state_dict()), "args": Evil(trace)}, path)
    with pytest.raises(ValueError, match="never loaded"):
        checkpoints.read(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["mmfs.pt", "mmfs.safetensors"])
def test_cut_and_absent_files(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(ValueError, match="could not be opened"):
        checkpoints.read(path)
    state = dict(stylizer().state_dict())
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1000):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="could not be read"):
            checkpoints.read(path)


ones = torch.ones(2, 2)


@pytest.mark.parametrize(
    "state, words",
    [
        (
            {"mapping.fc0.weight": ones, "synthesis.L0_36_512.weight": ones, **{f"more.{n}": ones for n in range(9)}},
            r"StyleGAN3.*keys of 11: mapping.fc0.weight, synthesis.L0_36_512.weight, more.0, more.1, more.2\.",
        ),
        ({"synthesis.b4.const": ones}, "NVIDIA's own layout"),
        ({"encoder.input_layer.0.weight": ones}, "pSp, e4e"),
        ({"model.diffusion_model.out.0.weight": ones}, "Stable Diffusion"),
        ({"state_dict": {"x": ones}}, "another network; its first keys of 1: x"),
        ({"g_ema": {}}, "no weights"),
        ([1, 2], "no weights"),
        (Discriminator((3, 4)).state_dict(), "a discriminator alone"),
    ],
)
def test_other_networks_are_named(tmp_path, state, words):
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=words):
        checkpoints.read(tmp_path / "other.pt")


def changed(state, **changes):
    state = dict(state)
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


@pytest.mark.parametrize(
    "make, changes, words",
    [
        (stylizer, {"decoder1a__noise__weight": None}, r"not a whole stylizer: it lacks decoder1a.noise.weight"),
        (stylizer, {"decoder5a__noise__weight": ones}, r"has unknown decoder5a.noise.weight"),
        (stylizer, {"to_rgb2__bias": ones}, r"to_rgb2.bias \[2, 2\] instead of \[1, 3, 1, 1\]"),
        (stylizer, {"decoder3b__conv__weight": None}, "decoder3b.conv.weight"),
        (stylizer, {"decoder3b__conv__weight": torch.tensor(1.0)}, "not a whole stylizer"),
        (stylizer, {"clip_mapper__position_embedding": None}, "lacks clip_mapper.position_embedding"),
        (
            stylizer,
            {"to_rgb2__upsample__kernel": torch.full((4, 4), 0.25)},
            "another low pass.*to_rgb2.upsample.kernel",
        ),
        (
            stylizer,
            {"encoder__1__skip__0__kernel": 4 * Stylizer((3, 4, 5, 6), 16).encoder[1].skip[0].kernel},
            "another low pass.*encoder.1.skip.0.kernel",
        ),
        (stylizer, {"to_rgb2__bias": torch.full((1, 3, 1, 1), float("nan"))}, "NaN.*to_rgb2.bias"),
        (generator, {"convs__3__activate__bias": None}, "not a whole generator: it lacks convs.3.activate.bias"),
        (generator, {"convs__1__conv__weight": None}, "convs.1.conv.weight"),
        (generator, {"noises__noise_2": ones}, "noises.noise_2"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, make, changes, words):
    torch.save(changed(make().state_dict(), **changes), tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=words):
        checkpoints.read(tmp_path / "wrong.pt")


def read_generator(tmp_path, **options):
    torch.save({"g_ema": dict(generator(**options).state_dict())}, tmp_path / "stylegan2.pt")
    return checkpoints.read(tmp_path / "stylegan2.pt")


def test_a_stylizer_starts_as_the_generators_upper_layers(tmp_path):
    """Without the RGB of its smaller layers, the generator's picture is the decoder's, from the features at S/16."""
    found = read_generator(tmp_path, channels=(2, 3, 6, 6, 5, 4, 3))  # 256 pixels: S/16 is 16 pixels, the third size
    source, made = checkpoints.network(found), checkpoints.warm_start(found).eval()
    assert made.channels == (3, 4, 5, 6) and made.style == 8 and len(made.mapping_z) == 4
    for part in (source.to_rgb1, source.to_rgbs[0]):
        part.conv.weight.zero_()
        part.bias.zero_()
    for part in (source, made):  # biases and noise count too
        for name, parameter in part.named_parameters():
            if name.endswith("noise.weight"):
                parameter.data.fill_(0.3)
    z = torch.randn(2, 8)
    w, noise, seen = source.map(z), source.noise_maps(2, 1), []
    handle = source.convs[3].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    picture = source(source.styles(w), noise)
    handle.remove()
    style = made.style_from_seed(z)
    assert torch.allclose(style[0], w)
    assert torch.allclose(made.decode_unbounded(seen[0], style, noise[4:]), picture, atol=1e-5 * picture.abs().max())
    cold = checkpoints.warm_start(found, cold=True)
    assert not torch.equal(cold.decoder0.conv.weight, made.decoder0.conv.weight) and torch.equal(
        cold.decoder1a.conv.weight, made.decoder1a.conv.weight
    )


def test_the_smallest_generator_and_those_that_do_not_fit(tmp_path):
    found = read_generator(tmp_path, channels=(6, 6, 5, 4, 3))  # 64 pixels: S/16 is the generator's first size
    made = checkpoints.warm_start(found)
    assert torch.equal(made.decoder0.conv.weight, found.state["conv1.conv.weight"]) and torch.equal(
        made.to_rgb0.bias, found.state["to_rgb1.bias"]
    )
    for channels in ((6, 5, 4, 3), (7, 6, 5, 4, 3)):
        with pytest.raises(ValueError, match="does not fit 4 levels"):
            checkpoints.warm_start(read_generator(tmp_path, channels=channels))
    found = read_generator(tmp_path, channels=(7, 6, 5, 5, 3))  # features of 16 x 16 for 64 pixels
    made = checkpoints.warm_start(found, levels=2)
    assert made.channels == (3, 5) and made.styles == 6
    for mine, theirs in (("decoder0", "convs.3"), ("to_rgb0", "to_rgbs.1"), ("decoder2b", "convs.7")):
        key = "conv.weight"
        assert torch.equal(made.state_dict()[f"{mine}.{key}"], found.state[f"{theirs}.{key}"])
    checkpoints.save(tmp_path / "small.safetensors", made.state_dict())
    assert checkpoints.network(checkpoints.read(tmp_path / "small.safetensors")).channels == made.channels
    torch.save(stylizer().state_dict(), tmp_path / "mmfs.pt")
    with pytest.raises(ValueError, match="not with a stylizer"):
        checkpoints.warm_start(checkpoints.read(tmp_path / "mmfs.pt"))


def test_saving_in_half_precision(tmp_path):
    state, path = stylizer().state_dict(), tmp_path / "mmfs.safetensors"
    checkpoints.save(path, state, {"phase": 3}, torch.float16)
    found = checkpoints.read(path)
    assert equal(
        {key: value.half() for key, value in state.items()}, {key: value.half() for key, value in found.state.items()}
    )
    assert found.state["decoder0.conv.weight"].dtype == torch.float16
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="to_rgb0.bias.*float16.*nothing was saved"):
        checkpoints.save(path, {**state, "to_rgb0.bias": torch.full((1, 3, 1, 1), 1e5)}, {}, torch.float16)
    assert path.read_bytes() == whole


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "mmfs.safetensors"
    checkpoints.save(path, stylizer().state_dict())
    whole = path.read_bytes()

    def half(tensors, target, metadata):
        target.write_bytes(whole[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(path, stylizer(seed=1).state_dict())
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


def test_conversion(tmp_path):
    source, target = tmp_path / "mmfs.pt", tmp_path / "mmfs.safetensors"
    torch.save(training_file(dict(stylizer().state_dict())), source)
    checkpoints.convert(source, target)
    found = checkpoints.read(target)
    assert equal(found.state, dict(stylizer().state_dict())) and found.discriminator is None
    assert (
        found.metadata == {"phase": "3", "parent": checkpoints.fingerprint(source)}
        and len(found.metadata["parent"]) == 64
    )
