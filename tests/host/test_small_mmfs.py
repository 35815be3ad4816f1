"""The microworld's MMFS from the first portrait to its tables, on networks too small and briefly trained to be good."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as group

from portrait_atelier.benchmarks import microworld_mmfs
from portrait_atelier.demo.making import small_guides, small_mmfs, small_portraits
from portrait_atelier.demo.styles import HELD_OUT, NAMES
from portrait_atelier.evaluation.clip_model import Clip, token_ids
from portrait_atelier.stylegan import checkpoints, dino
from portrait_atelier.training import stage

TINY = {
    "stylegan2": {"steps": 2, "batch": 4, "channels": "8,8,8,8,8", "style": small_guides.WIDTH},
    "1": {"steps": 2, "batch": 4, "levels": 2},
    "2": {"steps": 2, "batch": 4},
    "3": {"steps": 2, "batch": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("small")
    (path / "config.json").write_text(json.dumps(TINY))
    assert make(path) == 0
    return path


def make(path):
    words = [
        str(path / "all"),
        "--config",
        str(path / "config.json"),
        "--people",
        "64",
        "--share",
        "0",
        "--device",
        "cpu",
    ]
    return small_mmfs.main(words)


def written(path):
    return {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def test_every_phase_begins_with_the_one_before_and_is_not_made_twice(folder):
    made = {phase: next((folder / "all" / phase).glob(f"{phase}-*.safetensors")) for phase in "123"}
    found = {phase: checkpoints.read(path) for phase, path in made.items()}
    assert [found[phase].phase for phase in "123"] == [1, 2, 3]
    for before, after in ("12", "23"):
        parent = made[before].with_suffix(".pt")
        assert found[after].metadata["parent"] == checkpoints.fingerprint(parent)
    network = checkpoints.network(found["3"])
    assert network.levels == 2 and network.style == small_guides.WIDTH and network.clip_mapper is not None
    before = written(folder / "all")
    assert make(folder) == 0 and written(folder / "all") == before


def test_the_guides_are_read_like_the_real_ones(folder):
    clip, keys = (
        Clip(folder / "all" / "guides" / "clip", "cpu"),
        dino.load(folder / "all" / "guides" / "dino.safetensors"),
    )
    pictures = torch.rand(2, 3, 64, 64)
    seen, patches = clip.see(pictures)
    assert seen.shape == (2, small_guides.WIDTH) and patches.shape == (2, 64, small_guides.WIDTH)
    assert keys(pictures).shape == (2, 65, small_guides.WIDTH)
    # A word of its own is a token of its own; another is spelled.
    assert len(token_ids(clip.tokenize, "a neon portrait, curly hair")) == 2 + 6
    assert len(token_ids(clip.tokenize, "zxq")) == 2 + 3 and token_ids(clip.tokenize, "zxq") != token_ids(
        clip.tokenize, "zxw"
    )
    assert not torch.equal(clip.text("neon"), clip.text("sepia"))


def test_the_tables(folder, tmp_path, capsys):
    words = "--people 16 --guided 4 --learnt 16 --styles 1 --steps 1".split()
    microworld_mmfs.main(["--folder", str(folder / "all"), "--write", str(tmp_path / "mmfs.md"), *words])
    told = json.loads((tmp_path / "mmfs.json").read_text())
    same, truth = told["the photos themselves"], told["the same people rendered in styles of the art (truth)"]
    assert same["structure"] == pytest.approx(1) and same["photo"] > 0.9 and same["diversity"] == 0
    assert truth["photo"] < 0.1 and truth["diversity"] > 1 and truth["distance to art"] < same["distance to art"] / 2
    ways = ["mapper alone", "fine-tuned without projection", "fine-tuned"]
    assert [f"One picture, styles that the art does not have: {way}" in told for way in ways] == [True] * 3
    assert (tmp_path / "mmfs.png").stat().st_size > 10_000
    assert not {"style", "other"} & set(told["Words, styles of the art: fine-tuned"])
    text = (tmp_path / "mmfs.md").read_text()
    assert capsys.readouterr().out.strip() in text and "nan" not in text and "10.390" in text
    microworld_mmfs.main([])
    assert "not measured" in capsys.readouterr().out


def test_portraits_go_on_where_they_were_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(small_portraits, "AT_ONCE", 4)
    small_portraits.main(tmp_path / "whole", 12)
    render, calls = small_portraits.render, []

    def interrupted(*arguments):
        calls.append(arguments[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(small_portraits, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small_portraits.main(tmp_path / "halves", 12)
    small_portraits.main(tmp_path / "halves", 12)
    assert len(calls) == 3 + 1 + 3 and len(set(calls)) == 6
    for name in ("art.npy", "photos.npy"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()


def test_the_art_has_no_held_out_style(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        small_portraits, "render", lambda style, seed: asked.append(style) or np.ones((len(style), 3, 64, 64), np.uint8)
    )
    small_portraits.main(tmp_path, 32)
    art, photos = torch.cat(asked).split(32)
    assert {NAMES[at] for at in art} == set(NAMES) - {"photo"} - set(HELD_OUT) and not photos.any()


def test_captions(folder):
    """What is said is true, and what is asked later was never taught."""
    world = small_guides.World(folder / "all" / "guides")
    captions = small_guides.Captions(world)
    who, which, pictures = world.draw(24)
    assert (
        pictures.shape == (24, 1, 3, 64, 64) and 0 <= pictures.min() and pictures.max() <= 1 and who.max() < world.known
    )
    true, taught, asked = captions.true(who, which[:, 0]), set(), set()
    for row, (person, k) in enumerate(zip(who.tolist(), which[:, 0].tolist())):
        style = int(captions.styles[person, k])
        for _ in range(8):
            text, numbers = captions.phrase(person, k)
            assert true[row, numbers].all() and (style not in numbers or NAMES[style] in text)
            assert all(captions.names[at] in text for at in numbers)
            taught |= {(style, at) for at in numbers if at >= len(NAMES)}
        if any(captions.apart(style, word) for word in captions.words(person, k)):
            _, (_, word) = captions.phrase(person, k, held_out=True)
            assert true[row, word]
            asked.add((style, word))
    assert taught and asked and not taught & asked


def test_processes_that_work_together_are_not_doubled(tmp_path, monkeypatch):
    monkeypatch.setattr(
        stage.subprocess, "Popen", lambda *arguments, **more: pytest.fail("another process was started")
    )
    group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
    try:
        stage.share_work(tmp_path, 2)
    finally:
        group.destroy_process_group()
