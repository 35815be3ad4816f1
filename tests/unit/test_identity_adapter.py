"""Face adapter files: every layout they come in, and what is refused with which words."""

import pickle

import pytest
import safetensors.torch
import torch

from portrait_atelier.identity.adapter import load_adapter

WIDTH, EMBEDDING, CLIP, TOKENS = 64, 24, 20, 3


def tensor(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def network(width=WIDTH, plus=True):
    found = {"proj.0.weight": tensor(2 * EMBEDDING, EMBEDDING), "proj.0.bias": tensor(2 * EMBEDDING),
             "proj.2.weight": tensor(TOKENS * width, 2 * EMBEDDING), "proj.2.bias": tensor(TOKENS * width),
             "norm.weight": tensor(width), "norm.bias": tensor(width)}
    if plus:
        p = "perceiver_resampler."
        found |= {p + "proj_in.weight": tensor(width, CLIP), p + "proj_in.bias": tensor(width), p + "proj_out.weight": tensor(width, width),
                  p + "proj_out.bias": tensor(width), p + "norm_out.weight": tensor(width), p + "norm_out.bias": tensor(width)}
        l = p + "layers.0."
        found |= {f"{l}{name}.{kind}": tensor(width) for name in ("0.norm1", "0.norm2", "1.0") for kind in ("weight", "bias")}
        found |= {l + "0.to_q.weight": tensor(64, width), l + "0.to_kv.weight": tensor(128, width), l + "0.to_out.weight": tensor(width, 64),
                  l + "1.1.weight": tensor(4 * width, width), l + "1.3.weight": tensor(width, 4 * width)}
    return found


def layers(width=WIDTH, lora=True):
    found = {f"{n}.to_{kind}_ip.weight": tensor(8, width) + n for n in (1, 3) for kind in "kv"}
    if lora:
        found |= {f"{n}.to_{kind}_lora.{side}.weight": tensor(*((2, 8) if side == "down" else (8, 2)))
                  for n in range(4) for kind in ("q", "k", "v", "out") for side in ("down", "up")}
    return found


def flat(**parts):
    return {f"{prefix}.{name}": value for prefix, part in parts.items() for name, value in part.items()}


@pytest.fixture
def save(tmp_path):
    def write(tensors, name="face.safetensors"):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(tensors, path)
        else:
            torch.save(tensors, path)
        return path

    return write


LAYOUTS = {
    "flat": ("face.safetensors", lambda: flat(image_proj=network(), ip_adapter=layers())),
    "trained": ("face.safetensors", lambda: flat(image_proj=network(), adapter_modules=layers())),
    "nested": ("face.bin", lambda: {"image_proj": network(), "ip_adapter": layers()}),
    "flat bin": ("face.bin", lambda: flat(image_proj=network(), ip_adapter=layers())),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_adapter(save, layout):
    name, make = LAYOUTS[layout]
    adapter = load_adapter(save(make(), name))
    assert (adapter.name, adapter.base, adapter.width, adapter.plus, adapter.version, adapter.clip_width) == (name, "other", WIDTH, True, "v1", CLIP)
    assert adapter.projection.tokens == TOKENS and adapter.projection.embedding_width == EMBEDDING
    expected = layers()
    assert list(adapter.keys_values) == [1, 3]
    for n, (key, value) in adapter.keys_values.items():
        assert torch.equal(key, expected[f"{n}.to_k_ip.weight"]) and torch.equal(value, expected[f"{n}.to_v_ip.weight"])
    lora = {name: value for name, value in expected.items() if "lora" in name}
    assert set(adapter.lora) == set(lora) and all(torch.equal(adapter.lora[name], lora[name]) for name in lora) and len(lora) == 32
    for name, parameter in adapter.projection.named_parameters():
        assert torch.equal(parameter, network()[name]) and not parameter.requires_grad


@pytest.mark.parametrize("width, base", [(768, "sd15"), (2048, "sdxl"), (1024, "other"), (WIDTH, "other")])
@pytest.mark.parametrize("plus", [False, True])
def test_base_and_kind_are_read_from_the_tensors(save, width, base, plus):
    if plus and width > WIDTH:
        width, base = WIDTH, "other"  # the resampler's size adds nothing here
    adapter = load_adapter(save(flat(image_proj=network(width, plus), ip_adapter=layers(width)), "sdxl_plusv2.safetensors"))
    assert (adapter.base, adapter.width, adapter.plus) == (base, width, plus)


@pytest.mark.parametrize("name, version, expected", [
    ("ip-adapter-faceid-plusv2_sd15.safetensors", "auto", "v2"), ("ip-adapter-faceid-plus_sd15.safetensors", "auto", "v1"),
    ("FaceID-Plus-V2.safetensors", "auto", "v2"), ("faceid-plusv2.safetensors", "v1", "v1"), ("face.safetensors", "v2", "v2")])
def test_version(save, name, version, expected):
    adapter = load_adapter(save(flat(image_proj=network(), ip_adapter=layers()), name), version)
    assert adapter.version == adapter.projection.version == expected


def test_half_precision_stays(save):
    adapter = load_adapter(save({name: value.half() for name, value in flat(image_proj=network(), ip_adapter=layers()).items()}))
    assert {value.dtype for pair in adapter.keys_values.values() for value in pair} == {torch.float16}
    assert adapter.projection(torch.zeros(1, EMBEDDING), torch.zeros(1, 5, CLIP)).dtype == torch.float32


def without(tensors, *names):
    return {name: value for name, value in tensors.items() if name not in names}


REFUSED = {
    "a plain IP-Adapter": (lambda: flat(image_proj={"proj.weight": tensor(8, 8), "norm.weight": tensor(8)}, ip_adapter=layers(lora=False)),
                           "is a plain IP-Adapter: it takes pictures, not faces. Load an IP-Adapter FaceID file"),
    "IP-Adapter Plus": (lambda: flat(image_proj={"latents": tensor(1, 8, 8), "proj_in.weight": tensor(8, 8)}, ip_adapter=layers(lora=False)),
                        "is a plain IP-Adapter"),
    "no LoRA": (lambda: flat(image_proj=network(plus=False), ip_adapter=layers(lora=False)), "FaceID adapter without the LoRA"),
    "another model": (lambda: {"model.a.weight": tensor(2), "model.b.weight": tensor(3)},
                      r"is not an IP-Adapter file: it holds model.a.weight, model.b.weight instead of image_proj"),
    "a LoRA": (lambda: {f"lora_unet_{i}.alpha": tensor(1) for i in range(9)}, r"holds lora_unet_0.alpha, .*, \.\.\. instead"),
    "a part missing": (lambda: flat(image_proj=network(), ip_adapter=without(layers(), "3.to_v_ip.weight")),
                       "not complete: '3.to_v_ip.weight' Download the file again"),
    "network cut": (lambda: flat(image_proj=without(network(), "proj.2.bias"), ip_adapter=layers()), "not complete"),
    "no layers": (lambda: flat(image_proj=network(), ip_adapter={k: v for k, v in layers().items() if "_ip" not in k}), "attention layers do not"),
    "two adapters": (lambda: flat(image_proj=network(), ip_adapter=layers(32)), "mixes parts of two adapters: its tokens have width 64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(save, case):
    make, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as error:
        load_adapter(save(make()))
    assert "face.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["image_proj.norm.bias", "ip_adapter.3.to_v_ip.weight", "ip_adapter.2.to_q_lora.up.weight"])
def test_weights_that_are_not_finite(save, name, value):
    tensors = flat(image_proj=network(), ip_adapter=layers())
    tensors[name].view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"face.safetensors' holds NaN or infinite values in '{name}'.*Download the file again"):
        load_adapter(save(tensors))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("old_format", [False, True])
def test_python_objects_are_never_loaded(tmp_path, old_format):
    """A .bin that would run code when unpickled: nothing runs."""
    mark, path = tmp_path / "it ran", tmp_path / "face.bin"
    content = {"image_proj": network(), "ip_adapter": layers(), "more": Bomb(mark)}
    if old_format:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="holds Python objects, which are never loaded because they can run code"):
        load_adapter(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["face.safetensors", "face.bin"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\3\4" + bytes(40), b"hello",
                                     b"\x80\x02" + b"(" * 9 + b"e."])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="could not be read as plain weights: it is damaged"):
        load_adapter(tmp_path / name)


def test_a_bin_that_is_no_dictionary(save):
    with pytest.raises(ValueError, match="is not an IP-Adapter file: it holds no tensors"):
        load_adapter(save([1, 2], "face.bin"))
