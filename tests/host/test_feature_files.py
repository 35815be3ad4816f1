"""Save Features and Load Features: the same bits come back, and only for the model they came from."""

import json
import os

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from portrait_atelier.host import feature_files
from portrait_atelier.nodes.load_features import LoadFeatures
from portrait_atelier.nodes.save_features import SaveFeatures


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An output folder of this test's own; its features folder."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    place = tmp_path / "features"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, feature_files.FOLDER, ([str(place)], set()))
    return place


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(a[s].keys() == b[s].keys() and all(torch.equal(a[s][k], b[s][k]) for k in a[s]) for s in a)


@pytest.mark.parametrize("merged", [0.0, 0.5])
def test_what_is_saved_comes_back_bit_for_bit(studio, tensor, folder, merged):
    """As read, or merged and weighted; two pictures, both prompts; the sampler cannot tell the difference."""
    latent = tensor(2, 4, 8, 8, seed=3)
    bank = studio.features(latent, timestep=199, seed=5)
    bank = studio.merge(bank, ratio=merged, weigh_merged=True) if merged else bank
    result = SaveFeatures.execute(studio.model, bank, "sub/a style")
    assert result[0] is bank and result.ui["text"] == [str(folder / "sub" / "a style.safetensors")]
    loaded = LoadFeatures.execute(studio.model, "sub/a style.safetensors")[0]
    assert same(loaded.features, bank.features) and (not merged or same(loaded.counts, bank.counts))
    told = ("grids", "timestep", "seed", "family", "weights_id", "weighted")
    assert [getattr(loaded, name) for name in told] == [getattr(bank, name) for name in told]
    assert loaded.layers == bank.layers
    one = tensor(1, 4, 8, 8, seed=4)
    source = studio.features(one)
    options = {"steps": 1, "denoise": 1.0}
    assert torch.equal(studio.sample(studio.patch(source, loaded), one, **options), studio.sample(studio.patch(source, bank), one, **options))


def test_names(sd15, tensor, folder):
    bank = sd15.features(tensor(1, 4, 8, 8, seed=3))
    for expected in ("x.safetensors", "x_2.safetensors", "x_3.safetensors"):
        assert SaveFeatures.execute(sd15.model, bank, "x").ui["text"] == [str(folder / expected)]
    assert SaveFeatures.execute(sd15.model, bank, " x.safetensors ", True).ui["text"] == [str(folder / "x.safetensors")]
    assert sorted(os.listdir(folder)) == ["x.safetensors", "x_2.safetensors", "x_3.safetensors"]
    for name in ("", "../x", "/x", "a/../../x", "a//b", ".", "a:b", "a\\b", "x\ty"):
        assert "is no name of a file below" in SaveFeatures.validate_inputs(name=name)
        with pytest.raises(ValueError, match="is no name of a file below"):
            SaveFeatures.execute(sd15.model, bank, name)
    assert SaveFeatures.validate_inputs(name="ä b/ü") is True and SaveFeatures.validate_inputs() is True


def test_a_file_replaced_is_another_style(sd15, tensor, folder):
    """As ComfyUI's cache asks."""
    bank = sd15.features(tensor(1, 4, 8, 8, seed=3))
    SaveFeatures.execute(sd15.model, bank, "x")
    before = LoadFeatures.fingerprint_inputs(None, "x.safetensors")
    os.utime(folder / "x.safetensors", ns=(1, 1))
    assert before is not None and LoadFeatures.fingerprint_inputs(None, "x.safetensors") == 1
    assert LoadFeatures.fingerprint_inputs(None, "none.safetensors") is None


def test_another_model_is_refused(sd15, sdxl, make_studio, make_desk, tensor, folder):
    """Of another family, with other weights, and with a LoRA on the same weights."""
    bank = sd15.features(tensor(1, 4, 8, 8, seed=3))
    SaveFeatures.execute(sd15.model, bank, "x")
    other = make_studio("sd15", seed=1)
    with pytest.raises(ValueError, match=r"features 'x.safetensors' came from another model of family TinySD15"):
        LoadFeatures.execute(other.model, "x.safetensors")
    with pytest.raises(ValueError, match="but this model is TinySDXL"):
        LoadFeatures.execute(sdxl.model, "x.safetensors")
    with pytest.raises(ValueError, match="these features came from another model"):
        SaveFeatures.execute(other.model, bank, "y")
    assert os.listdir(folder) == ["x.safetensors"]
    with_lora, _ = comfy.sd.load_lora_for_models(sd15.model, None, make_desk("sd15").lora(size=0.5), 1.0, 0)
    with pytest.raises(ValueError, match="other LoRAs"):
        LoadFeatures.execute(with_lora, "x.safetensors")
    LoadFeatures.execute(sd15.model, "x.safetensors")


def test_another_precision_is_the_same_model(folder, monkeypatch):
    """The demo model, which is trained, in fp32, bf16 and fp16: far nearer to itself than the bound."""
    from portrait_atelier.demo import checkpoint
    from portrait_atelier.host import demo_model

    world = checkpoint.load()

    def prints(dtype):
        monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda *_, **__: dtype)
        monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_, **__: None)
        return feature_files.fingerprint(demo_model.model(world.unet, world.scale, *world.codec.preview()))

    exact = prints(torch.float32)
    assert feature_files.apart(prints(torch.float32), exact) == 0
    rounded = {str(dtype): feature_files.apart(prints(dtype), exact) for dtype in (torch.bfloat16, torch.float16)}
    assert all(0 < distance < feature_files.SAME / 3 for distance in rounded.values()), rounded


def test_no_features(sd15, tensor, folder):
    SaveFeatures.execute(sd15.model, sd15.features(tensor(1, 4, 8, 8, seed=3)), "x")
    whole = (folder / "x.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:len(whole) // 2])
    (folder / "junk.safetensors").write_bytes(b"no")
    save_file({"a": torch.zeros(1)}, folder / "lora.safetensors")
    with pytest.raises(ValueError, match="There are no features 'none.safetensors' in .*Save Features"):
        LoadFeatures.execute(sd15.model, "none.safetensors")
    for name in ("cut", "junk", "lora"):
        with pytest.raises(ValueError, match=f"'{name}.safetensors' in .* holds no Consistency Features"):
            LoadFeatures.execute(sd15.model, f"{name}.safetensors")

    def rewritten(change, drop=None):
        from safetensors import safe_open
        with safe_open(folder / "x.safetensors", "pt") as file:
            about = json.loads(file.metadata()[feature_files.FORMAT])
        tensors = {key: value for key, value in load_file(folder / "x.safetensors").items() if key != drop}
        save_file(tensors, folder / "y.safetensors", {feature_files.FORMAT: json.dumps({**about, **change})})

    rewritten({"version": 9})
    with pytest.raises(ValueError, match="another version of this pack"):
        LoadFeatures.execute(sd15.model, "y.safetensors")
    rewritten({}, drop="features.0.output.5.0")
    with pytest.raises(ValueError, match="is damaged"):
        LoadFeatures.execute(sd15.model, "y.safetensors")


def test_a_full_disk_leaves_no_part_of_a_file(sd15, tensor, folder, monkeypatch):
    from portrait_atelier.host import unfinished

    def full(tensors, path, metadata):
        save_file(tensors, path, metadata)
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(unfinished, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        SaveFeatures.execute(sd15.model, sd15.features(tensor(1, 4, 8, 8, seed=3)), "x")
    assert os.listdir(folder) == []


def test_the_memory_of_fingerprints_is_bounded(make_desk, monkeypatch):
    monkeypatch.setattr(feature_files, "_fingerprints", {})
    for seed in range(feature_files.KNOWN + 2):
        feature_files.fingerprint(make_desk("nano", seed).model)
    assert len(feature_files._fingerprints) == feature_files.KNOWN
