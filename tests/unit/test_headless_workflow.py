"""Values for a workflow's inputs, and the checks of a call before anything runs."""
import json

import pytest

from portrait_atelier.headless import AtelierError
from portrait_atelier.headless.stylize import output_path, picture
from portrait_atelier.headless.workflow import checked, load, shipped

INT = ("INT", {"min": 1, "max": 64})
FLOAT = ("FLOAT", {"min": 0.0, "max": 3.0})


@pytest.mark.parametrize("spec, text, value", [
    (INT, "1", 1), (INT, "64", 64), (FLOAT, "0", 0.0), (FLOAT, "3.0", 3.0), (FLOAT, "1e-1", 0.1), (("INT",), "-7", -7),
    (("INT", {"max": 2**64 - 1}), str(2**64 - 1), 2**64 - 1),
    (("STRING", {}), "a, b = c", "a, b = c"), (("STRING", {}), "12", "12"),
    (("BOOLEAN", {}), "True", True), (("BOOLEAN", {}), "no", False), (("BOOLEAN", {}), "0", False),
    ((["a", "b"],), "b", "b"), (([1, 2],), "2", 2), (("COMBO", {"options": ["a", "b"]}), "a", "a"),
])
def test_good_values(spec, text, value):
    result = checked(spec, text, "--set x")
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize("spec, text, told", [
    (INT, "0", "0 is out of range; it goes from 1 to 64"), (INT, "65", "range"), (INT, "2.5", "no whole number"),
    (INT, "", "no whole number"), (FLOAT, "3.01", "range"), (FLOAT, "-0.1", "range"), (FLOAT, "inf", "range"),
    (FLOAT, "nan", "no number"), (FLOAT, "much", "no number"), (("BOOLEAN", {}), "2", "neither true nor false"),
    ((["a", "b"],), "c", "choose from a, b"), (("COMBO", {"options": []}), "c", "the list is empty"),
    (("MODEL", {}), "m", "MODEL socket"),
])
def test_bad_values(spec, text, told):
    with pytest.raises(AtelierError, match=told) as error:
        checked(spec, text, "--set x")
    assert str(error.value).startswith("--set x: ")


def test_the_shipped_workflows_load():
    assert "zepo_demo" in shipped()
    for name in shipped():
        assert load(name)


@pytest.mark.parametrize("text, told", [
    ("{", "cannot read"), ("[]", "API format"), ("{}", "API format"), ('{"1": {"class_type": "X"}}', "API format"),
    ('{"nodes": [], "links": []}', r"Export \(API\)"),
])
def test_what_is_no_workflow(tmp_path, text, told):
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(AtelierError, match=told):
        load(str(path))


def test_an_unknown_workflow_names_the_known_ones():
    with pytest.raises(AtelierError, match="zepo_demo"):
        load("no_such")


def test_a_workflow_file_is_read(tmp_path):
    workflow = {"1": {"class_type": "X", "inputs": {}}}
    (tmp_path / "mine.json").write_text(json.dumps(workflow))
    assert load(str(tmp_path / "mine.json")) == workflow


@pytest.mark.parametrize("head", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", b"GIF89a", b"BM", b"II*\0"])
def test_pictures_are_known_by_their_first_bytes(tmp_path, head):
    (tmp_path / "p").write_bytes(head + b"rest")
    assert picture(str(tmp_path / "p"), "style") == tmp_path / "p"


@pytest.mark.parametrize("head", [b"", b"%PDF-1.7", b"RIFF\0\0\0\0WAVE", b"<svg>"])
def test_other_files_are_no_pictures(tmp_path, head):
    (tmp_path / "p.png").write_bytes(head)
    with pytest.raises(AtelierError, match="no picture"):
        picture(str(tmp_path / "p.png"), "style")


def test_missing_pictures_are_told_with_their_folder(tmp_path):
    with pytest.raises(AtelierError, match=f"--content .*no such file in {tmp_path}"):
        picture(str(tmp_path / "none.png"), "content")


def test_the_default_name_never_replaces_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = {"Content": tmp_path / "me.jpg", "Style": tmp_path / "ink.png"}
    assert output_path(None, pictures, "zepo_demo").name == "me_ink.png"
    for name in ("me_ink.png", "me_ink_2.png"):
        (tmp_path / name).touch()
    assert output_path(None, pictures, "zepo_demo").name == "me_ink_3.png"
    assert output_path(str(tmp_path), pictures, "zepo_demo") == tmp_path / "me_ink_3.png"
    assert output_path("me_ink.png", pictures, "zepo_demo").name == "me_ink.png"
    assert output_path("plain", pictures, "zepo_demo").name == "plain.png"


def test_the_default_name_of_a_result_from_one_picture_or_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output_path(None, {"Face": tmp_path / "me.jpg"}, "fastface_demo").name == "me_fastface_demo.png"
    assert output_path(None, {}, "flows/mine.json").name == "mine.png"


@pytest.mark.parametrize("name, told", [("x.jpg", "name it x.png"), ("v1.2", "PNG"), ("none/x.png", "no folder")])
def test_bad_output_names(tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AtelierError, match=told):
        output_path(name, {}, "zepo_demo")
