"""Style LoRA files that are damaged, hostile, or made for something else: every one is answered by its name, what is wrong, what to do."""

import pickle
import struct

import folder_paths
import pytest
import torch
from safetensors.torch import save, save_file


@pytest.fixture(scope="module")
def path(desk):
    with torch.inference_mode():
        return desk.source(steps=2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], folder_paths.supported_pt_extensions))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Bomb:
    def __reduce__(self):
        return open, ("it ran", "w")


def whole(desk):
    return save({key: value.contiguous() for key, value in desk.lora().items()})


def saved(content):
    def write(desk, file):
        torch.save(content, file)
    return write


def raw(content):
    return lambda desk, file: file.write_bytes(content(desk) if callable(content) else content)


def circle():
    tree = {"a": torch.ones(2)}
    tree["b"] = tree
    return tree


def doubled():
    tree = {"a": torch.ones(2)}
    for _ in range(40):
        tree = {"a": tree, "b": tree}
    return tree


UNREADABLE = {
    "nothing.safetensors": raw(b""),
    "zeros.safetensors": raw(bytes(64)),
    "cut in the header.safetensors": raw(lambda desk: whole(desk)[:200]),
    "cut in the data.safetensors": raw(lambda desk: whole(desk)[:-1]),
    "longer.safetensors": raw(lambda desk: whole(desk) + bytes(7)),
    "a header of 2^63 bytes.safetensors": raw(struct.pack("<Q", 2**63) + b"{}"),
    "no json.safetensors": raw(struct.pack("<Q", 8) + b"{not json"),
    "text.safetensors": raw(b"version https://git-lfs.github.com/spec/v1\n"),
    "a web page.sft": raw(b"<!DOCTYPE html><html>" * 20),
    "a pickle.safetensors": saved({"a": torch.ones(2)}),
    "nothing.pt": raw(b""),
    "zeros.bin": raw(bytes(64)),
    "text.pt": raw(b"version https://git-lfs.github.com/spec/v1\n"),
    "a word.ckpt": raw(b"hello"),
    "marks.pt": raw(b"\x80\x02" + b"(" * 1000 + b"t."),
    "nested marks.pt": raw(b"\x80\x02((((((ee."),
    "an empty stack.pkl": raw(b"\x80\x02."),
    "cut.pt": lambda desk, file: (torch.save({"a": torch.ones(100)}, file), file.write_bytes(file.read_bytes()[:-300])),
    "a zip of nothing.pt": raw(b"PK\x05\x06" + bytes(18)),
    "objects.pt": saved({"a": Bomb()}),
    "objects of old.pt": raw(lambda desk: pickle.dumps({"a": Bomb()})),
    "a circle.pt": saved(circle()),
    "doubled.pt": saved(doubled()),
    "a view of one number.pt": saved({"a": torch.ones(1).expand(2**40)}),
    "sparse.pt": saved({"a": torch.eye(3).to_sparse()}),
    "meta.pt": saved({"a": torch.ones(3, device="meta")}),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_cannot_be_read(desk, folder, name):
    UNREADABLE[name](desk, folder / name)
    with pytest.raises(ValueError) as error:
        desk.branch(lora_name=name)
    text = str(error.value)
    assert text.startswith(f"'{folder / name}' could not be read as plain weights: it is damaged, or holds Python objects")
    assert "Download the file again" in text and "\n" not in text and "weights_only" not in text and not (folder / "it ran").exists()


def first(lora):
    return next(key for key in lora if key.endswith("lora_up.weight")).removesuffix(".lora_up.weight")


def changed(**parts):
    """A whole LoRA with some tensors of its first pair replaced; None leaves a tensor out."""
    def tensors(desk):
        lora = desk.lora()
        for part, value in parts.items():
            name = f"{first(lora)}.{'alpha' if part == 'alpha' else part + '.weight'}"
            lora[name] = value
            if value is None:
                del lora[name]
        return lora
    return tensors


NAN, INFINITE = torch.full((32, 4), float("nan")), torch.full((4, 32), float("inf"))
WRONG = {
    "no tensors": (lambda desk: {}, "is empty: it holds no tensors"),
    "nan": (changed(lora_up=NAN), "holds NaN or infinite values in '{first}.lora_up.weight'"),
    "infinite": (changed(lora_down=INFINITE), "holds NaN or infinite values in '{first}.lora_down.weight'"),
    "alpha nan": (changed(alpha=torch.tensor(float("nan"))), "holds NaN or infinite values in '{first}.alpha'"),
    "fp8 nan": (changed(lora_up=NAN.to(torch.float8_e4m3fn)), "holds NaN or infinite values in '{first}.lora_up.weight'"),
    "alpha of two": (changed(alpha=torch.ones(2)), "is damaged: '{first}.alpha' has shape [2], and must be one number"),
    "no up": (changed(lora_up=None), "is damaged: '{first}.lora_down.weight' is there without its other half '.lora_up.weight'"),
    "no down": (changed(lora_down=None), "is damaged: '{first}.lora_up.weight' is there without its other half '.lora_down.weight'"),
    "rank 0": (changed(lora_up=torch.ones(32, 0), lora_down=torch.ones(0, 32)), "[32, 0] and [0, 32], which share no rank"),
    "mixed ranks": (changed(lora_up=torch.ones(32, 8)), "the halves of '{first}' have shapes [32, 8] and [4, 32], which share no rank"),
    "one dimension": (changed(lora_up=torch.ones(32)), "the halves of '{first}' have shapes [32] and [4, 32], which share no rank"),
    "integers": (changed(lora_up=torch.ones(32, 4, dtype=torch.int64)), "is damaged: '{first}.lora_up.weight' holds int64 instead of weights"),
    "other shapes": (changed(lora_up=torch.ones(48, 4)), "belongs to another model family: {first} takes 32 channels to 32, the LoRA 32 to 48"),
    "no key fits": (lambda desk: {"lora_unet_nowhere.lora_up.weight": torch.ones(2, 2), "lora_unet_nowhere.lora_down.weight": torch.ones(2, 2)},
                    "has nothing for this model's UNet. Choose a LoRA trained on this model family. Its keys: lora_unet_nowhere.lora_"),
    "half a LoHa": (lambda desk: {f"{first(desk.lora())}.hada_w1_a": torch.ones(32, 2)}, "cannot be read by ComfyUI: KeyError"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("way", ["file", "socket"])
def test_loras_that_cannot_be_used(desk, folder, path, case, way):
    make, message = WRONG[case]
    lora = make(desk)
    if way == "file":
        save_file({key: value.contiguous() for key, value in lora.items()}, folder / "style.safetensors")
    with pytest.raises(ValueError) as error:
        desk.inject(path, desk.branch(**{"lora_name": "style.safetensors"} if way == "file" else {"lora": lora}))
    text = str(error.value)
    assert message.replace("{first}", first(desk.lora())) in text and ("style.safetensors" if way == "file" else "'lora' input") in text
    assert "\n" not in text and ("Choose" in text or "choose" in text)


def test_a_lora_that_is_no_dictionary_of_tensors(desk):
    with pytest.raises(ValueError, match="LoRA 'of the 'lora' input' is no list of tensors: it holds a str in 'name'"):
        desk.branch(lora={"name": "x"})


def test_files_that_are_gone(desk, folder):
    for name in ("gone.safetensors", "../../secret.safetensors"):
        with pytest.raises(ValueError) as error:
            desk.branch(lora_name=name)
        assert str(error.value).startswith(f"There is no LoRA '{name}' in {folder}. Put a LoRA file there")


@pytest.mark.parametrize("name", ["style.pt", "checkpoint.ckpt", "style.SAFETENSORS"])
def test_every_format_gives_the_same_picture(desk, folder, path, name):
    lora = desk.lora()
    if name.endswith("SAFETENSORS"):
        save_file({key: value.contiguous() for key, value in lora.items()}, folder / name)
    else:
        torch.save({"state_dict": lora, "epoch": 3} if name.startswith("checkpoint") else lora, folder / name)
    assert torch.equal(desk.sample(path, desk.branch(lora_name=name)), desk.sample(path, desk.branch(lora=lora)))
