"""Face Adapter Loader, and a file of this project's own making all the way into a sampled picture."""

import pytest
import safetensors.torch
import torch

from portrait_atelier.host.attention_processors import attention_paths
from portrait_atelier.nodes.face_adapter_apply import FaceAdapterApply
from portrait_atelier.nodes.face_adapter_loader import FaceAdapterLoader

EMBEDDING, TOKENS = 512, 4


def faceid_file(model):
    """A FaceID file of random weights that fits a model."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    paths = attention_paths(model)
    width = model.get_model_object(paths[1]).to_k.in_features
    found = {"image_proj.proj.0.weight": tensor(1024, EMBEDDING), "image_proj.proj.0.bias": tensor(1024),
             "image_proj.proj.2.weight": tensor(TOKENS * width, 1024), "image_proj.proj.2.bias": tensor(TOKENS * width),
             "image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width)}
    for n, path in paths.items():
        attention = model.get_model_object(path)
        for kind, linear in (("q", attention.to_q), ("k", attention.to_k), ("v", attention.to_v), ("out", attention.to_out[0])):
            found[f"ip_adapter.{n}.to_{kind}_lora.down.weight"] = tensor(2, linear.in_features)
            found[f"ip_adapter.{n}.to_{kind}_lora.up.weight"] = tensor(linear.out_features, 2)
            if n % 2 and kind in "kv":
                found[f"ip_adapter.{n}.to_{kind}_ip.weight"] = tensor(linear.out_features, width)
    return found


def load(name, version="auto"):
    return FaceAdapterLoader.execute(name, version)[0]


def test_files_and_folders_are_offered(folders):
    root = folders / "ipadapter"
    (root / "sdxl").mkdir()
    for name in ("a.bin", "sdxl/b.safetensors", "readme.md", "c.ckpt"):
        (root / name).write_bytes(b"")
    options = FaceAdapterLoader.define_schema().inputs[0].options
    assert {option.replace("\\", "/") for option in options} == {"a.bin", "sdxl/b.safetensors"}


def test_no_file_at_all(folders):
    [line] = FaceAdapterLoader.define_schema().inputs[0].options
    assert "models/ipadapter" in line
    with pytest.raises(ValueError) as error:
        load(line)
    assert str(error.value).startswith(f"Face Adapter Loader: no adapter files in {folders / 'ipadapter'}. Put an IP-Adapter FaceID file")


def test_a_name_that_leads_out_of_the_folder(folders, build_model):
    safetensors.torch.save_file(faceid_file(build_model("nano")), folders / "outside.safetensors")
    (folders / "ipadapter" / "other.bin").write_bytes(b"")
    for name in ("../outside.safetensors", str(folders / "outside.safetensors")):
        with pytest.raises(ValueError, match="Face Adapter Loader: no file '.*outside.safetensors' in .*ipadapter"):
            load(name)


def test_the_loaders_errors_reach_the_user(folders):
    (folders / "ipadapter" / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="could not be read as plain weights"):
        load("cut.safetensors")


@pytest.mark.parametrize("family", ["nano", "sd15"])
def test_from_photo_and_file_to_sampled_picture(folders, make_studio, encode, photo, tensor, family):
    """Every node of the chain in turn: different people give different pictures, strength 0 none."""
    studio = make_studio(family)
    safetensors.torch.save_file(faceid_file(studio.model), folders / "ipadapter" / "face.safetensors")
    adapter = load("face.safetensors")
    latent = tensor(1, 4, 8, 8, seed=5)

    def sample(person, **options):
        identity = encode(photo([(160, 160, 50, person)]))[0]
        return studio.sample(FaceAdapterApply.execute(studio.model, adapter, identity, **options)[0], latent, steps=1)

    plain, one, again, other = studio.sample(studio.model, latent, steps=1), sample(0), sample(0), sample(2)
    assert torch.isfinite(one).all() and torch.equal(one, again)
    assert not torch.equal(one, plain) and not torch.equal(one, other)
    assert torch.equal(sample(0, weight=0.0, lora_strength=0.0), plain)
