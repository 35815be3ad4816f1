"""A demo model file that is missing or of another version gets one clear line."""

import pytest
import torch

from portrait_atelier.demo import checkpoint
from portrait_atelier.demo.codec import Codec
from portrait_atelier.demo.judges import Judges
from portrait_atelier.demo.text import TextEncoder, tokenize, INDEX, LENGTH


def write(path, drop=""):
    parts = {name: module.state_dict() for name, module in (("text", TextEncoder()), ("codec", Codec()), ("judges", Judges()))}
    for weights in parts.values():
        weights.pop(drop, None)
    checkpoint.save(path, {"a": torch.ones(2)}, parts["text"], parts["codec"], parts["judges"], torch.ones(3), {"recipe": "none"})


def test_round_trip_in_half_precision(tmp_path):
    path = tmp_path / "world.safetensors"
    write(path)
    world = checkpoint.load(path)
    assert torch.equal(world.unet["a"], torch.ones(2)) and world.metadata == {"recipe": "none"}
    assert not any(parameter.requires_grad for parameter in world.codec.parameters())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.safetensors is missing from .*train-demo"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_file_of_another_version(tmp_path):
    path = tmp_path / "world.safetensors"
    write(path, drop="style.weight")
    with pytest.raises(ValueError, match="another version of the pack.*train-demo"):
        checkpoint.load(path)


def test_prompts_become_phrases(caplog):
    caplog.set_level("INFO", "portrait_atelier")
    assert tokenize("Head with red hair, a watercolor") == [INDEX["portrait"], INDEX["red hair"], INDEX["watercolor"]]
    assert "with, a" in caplog.text
    assert tokenize("") == []
    assert len(tokenize("portrait " * 40)) == LENGTH
