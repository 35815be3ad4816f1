"""A demo model file that is missing or of another version gets one clear line."""

import pytest
import torch

from portrait_atelier.demo import checkpoint
from portrait_atelier.demo.codec import Codec
from portrait_atelier.demo.judges import Judges
from portrait_atelier.demo.text import INDEX, LENGTH, TextEncoder, tokenize


def write(path, drop="", **said):
    parts = {name: module.state_dict() for name, module in (("text", TextEncoder()), ("codec", Codec()), ("judges", Judges()))}
    for weights in parts.values():
        weights.pop(drop, None)
    checkpoint.save(path, {"a": torch.ones(2)}, parts["text"], parts["codec"], parts["judges"], torch.ones(3), {"recipe": "none", **said})


def test_round_trip_in_half_precision(tmp_path):
    path = tmp_path / "world.safetensors"
    write(path, scale="1.15")
    world = checkpoint.load(path)
    assert torch.equal(world.unet["a"], torch.ones(2)) and world.metadata == {"recipe": "none", "scale": "1.15"}
    assert world.scale == 1.15
    assert not any(parameter.requires_grad for parameter in world.codec.parameters())


def test_large_weights_are_bytes(tmp_path):
    """Each row has its own step, so that a faint output channel keeps its precision; small ones stay halves."""
    path, generator = tmp_path / "world.safetensors", torch.Generator().manual_seed(0)
    weights = torch.randn(64, 16, 3, 3, generator=generator) * torch.logspace(-8, 0, 64).view(-1, 1, 1, 1)
    weights[5] = 0
    parts = [module.state_dict() for module in (TextEncoder(), Codec(), Judges())]
    unet = {"large": weights, "small": weights[0], "bias": weights[:, 0, 0, 0]}
    checkpoint.save(path, unet, *parts, torch.ones(3), {"scale": "1.15"})
    world = checkpoint.load(path)
    error = (world.unet["large"] - weights).flatten(1).norm(dim=1) / weights.flatten(1).norm(dim=1).clamp(min=1e-12)
    assert error.max() < .012 and set(world.unet) == {"large", "small", "bias"} and world.scale == 1.15
    assert all(torch.equal(world.unet[name], unet[name].half().float()) for name in ("small", "bias"))
    assert all(torch.equal(value, parts[2][name].half().float()) for name, value in world.judges.named_parameters())
    codec, judges = (sum(value.numel() for value in part.values()) for part in parts[1:])
    assert path.stat().st_size < 1.1 * codec + 2 * judges + 100_000


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.safetensors is missing from .*train-demo"):
        checkpoint.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("file", [{"drop": "style.weight", "scale": "1.15"}, {}], ids=["of other networks", "that says no scale"])
def test_file_of_another_version(tmp_path, file):
    path = tmp_path / "world.safetensors"
    write(path, **file)
    with pytest.raises(ValueError, match="another version of the pack.*train-demo"):
        checkpoint.load(path)


def test_prompts_become_phrases(caplog):
    caplog.set_level("INFO", "portrait_atelier")
    assert tokenize("Head with red hair, a watercolor") == [INDEX["portrait"], INDEX["red hair"], INDEX["watercolor"]]
    assert "with, a" in caplog.text
    assert tokenize("") == []
    assert len(tokenize("portrait " * 40)) == LENGTH
