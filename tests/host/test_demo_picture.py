"""Demo Picture: the shipped pictures and the user's own, as Load Image gives them."""

import hashlib

import folder_paths
import nodes
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from portrait_atelier.host import pictures
from portrait_atelier.nodes.demo_picture import DemoPicture

SHIPPED = sorted(path.name for path in pictures.SHIPPED.glob("*.png"))


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """An empty input folder."""
    folder = tmp_path / "input"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(folder))
    return folder


def options():
    return DemoPicture.GET_SCHEMA().inputs[0].options


def load(name):
    assert DemoPicture.validate_inputs(name) is True
    return DemoPicture.execute(name).args


@pytest.mark.parametrize("offered", [True, False])
def test_every_shipped_picture_loads(inputs, offered):
    """Those of an input folder that cannot be written too: then from the pack itself."""
    if offered:
        pictures.offer()
        assert sorted(path.name for path in (inputs / "atelier").iterdir()) == SHIPPED
    assert options() == [f"atelier/{name}" for name in SHIPPED]
    for name in SHIPPED:
        image, mask = load(f"atelier/{name}")
        with Image.open(pictures.SHIPPED / name) as file:
            expected = np.asarray(file.convert("RGBA"), dtype=np.float32) / 255
        assert torch.equal(image[0], torch.from_numpy(expected[..., :3]))
        assert torch.equal(mask.amax(), torch.tensor(1 - expected[..., 3].min()))


def test_an_input_folder_that_cannot_be_written_is_told_once_and_no_more(tmp_path, monkeypatch, caplog):
    (tmp_path / "input").write_text("a file where the folder should be")
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    pictures.offer()
    assert len(caplog.records) == 1 and "no preview" in caplog.text
    assert options() == [f"atelier/{name}" for name in SHIPPED]
    assert load("atelier/content.png")[0].shape == (1, 256, 256, 3)


def test_the_users_pictures_are_offered_and_loaded(inputs):
    pictures.offer()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(inputs / "me.png")
    (inputs / "notes.txt").write_text("no picture")
    assert options() == [f"atelier/{name}" for name in SHIPPED] + ["me.png"]
    for mine, core in zip(load("me.png"), nodes.LoadImage().load_image("me.png")):
        assert torch.equal(mine, core)
    before = DemoPicture.fingerprint_inputs("me.png")
    Image.fromarray(pixels[::-1]).save(inputs / "me.png")
    assert DemoPicture.fingerprint_inputs("me.png") != before


def test_a_changed_copy_stays(inputs):
    pictures.offer()
    Image.new("RGB", (8, 8)).save(inputs / "atelier" / "content.png")
    pictures.offer()
    assert load("atelier/content.png")[0].shape == (1, 8, 8, 3)
    (inputs / "atelier" / "content.png").write_text("no picture")
    pictures.offer()
    assert (inputs / "atelier" / "content.png").read_text() == "no picture"


def test_a_copy_from_before_is_brought_up_to_date(inputs, monkeypatch):
    """One with our mark, or known from before there were marks; not one whose marked pixels the user has changed."""
    pictures.offer()
    copy, shipped = inputs / "atelier" / "content.png", (pictures.SHIPPED / "content.png").read_bytes()
    for change, kept in (((), False), ((3, 4), True)):
        older, mark = Image.new("RGB", (9, 9), (1, 2, 3)), PngInfo()
        mark.add_text(pictures.MARK, pictures.pixels_hash(older))
        if change:
            older.putpixel(change, (0, 0, 0))
        older.save(copy, pnginfo=mark)
        before = copy.read_bytes()
        pictures.offer()
        assert copy.read_bytes() == (before if kept else shipped)
    monkeypatch.setattr(pictures, "UNMARKED", [hashlib.sha256(before).hexdigest()[:8]])
    pictures.offer()
    assert copy.read_bytes() == shipped


def test_the_shipped_pictures_are_marked():
    for path in pictures.SHIPPED.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.info[pictures.MARK] == pictures.pixels_hash(picture)


@pytest.mark.parametrize(
    "name", ["absent.png", "atelier/absent.png", "../me.png", "atelier/../../me.png", "/etc/passwd", "content.png"]
)
def test_other_names_are_refused(inputs, name):
    (inputs.parent / "me.png").write_bytes((pictures.SHIPPED / "content.png").read_bytes())
    refusal = DemoPicture.validate_inputs(name)
    assert name in refusal and str(inputs) in refusal and "upload" in refusal
    with pytest.raises(ValueError, match="no picture"):
        DemoPicture.execute(name)
