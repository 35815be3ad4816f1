"""Values for a workflow's inputs, and the checks of a call before anything runs."""
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from portrait_atelier.headless import AtelierError, workflow as workflow_module
from portrait_atelier.headless.pictures import SHIPPED, named, picture, place
from portrait_atelier.headless.stylize import output_path
from portrait_atelier.headless.workflow import Editor, checked, load, shipped

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


def test_a_workflow_goes_by_the_name_on_its_card_too():
    assert load("Demo 1 - Stylize a portrait") == load("zepo_demo")
    assert load("Portrait of a person - SDXL") == load("fastface_both_sdxl_hyper")
    with pytest.raises(AtelierError, match="no workflow"):
        load("../headless/models")


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


@pytest.mark.parametrize("name, data, told", [
    ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC photo, .* JPEG"), ("photo.jpg", b"\0\0\0\x1cftypmif1\0\0\0\0mif1heix", "HEIC"),
    ("tiles.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1....infe..grid", "in tiles"), ("a.png", b"", "is empty"),
    ("model.safetensors", b"\0" * 20, "given with --checkpoint"),
])
def test_pictures_that_comfyui_does_not_read(tmp_path, name, data, told):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AtelierError, match=told):
        picture(str(tmp_path / name), "content")


def test_an_avif_picture_is_one(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.avif")
    assert picture(str(tmp_path / "a.avif"), "style") == tmp_path / "a.avif"


def test_what_is_near_to_a_wrong_name_is_named(tmp_path):
    (tmp_path / "portrait.JPG").touch()
    for name, told in (("portrait.png", "did you mean portrait.JPG?"), ("potrait.JPG", "did you mean portrait.JPG?"),
                       ("watercolor", "shipped picture of that style is .*style-watercolor.png"), ("zzz", r"no such file in \S+$")):
        with pytest.raises(AtelierError, match=told):
            picture(str(tmp_path / name), "style")
    with pytest.raises(AtelierError, match="is a folder"):
        picture(str(tmp_path), "style")
    with pytest.raises(AtelierError, match="download the picture"):
        picture("https://example.org/me.png", "style")


BOTH = ["Content", "Style"]


@pytest.mark.parametrize("names, given, titles, placed", [
    (["a"], {}, BOTH, {"Content": "a"}), (["a", "b"], {}, BOTH, {"Content": "a", "Style": "b"}), (["a"], {}, ["Face"], {"Face": "a"}),
    (["a"], {"Style": "b"}, BOTH, {"Content": "a"}), (["a", "b"], {"Face": "c"}, [*BOTH, "Face"], {"Content": "a", "Style": "b"}), ([], {}, [], {}),
])
def test_pictures_without_options(names, given, titles, placed):
    assert place(names, given, titles, "w") == placed


@pytest.mark.parametrize("names, given, titles, told", [
    (["a"], {"Content": "b"}, BOTH, "content picture is given twice: a and --content b"), (["a", "b"], {"Style": "c"}, BOTH, "style picture is given twice"),
    (["a", "b", "c"], {}, BOTH, r"3 pictures are given \(a, b, c\), and workflow w takes content and style"), (["a"], {}, [], "takes none"),
    (["a", "b"], {}, ["Face"], "takes face"),
])
def test_pictures_without_options_that_find_no_place(names, given, titles, told):
    with pytest.raises(AtelierError, match=told):
        place(names, given, titles, "w")


def test_the_users_picture_takes_the_place_of_the_demo_picture(kit):
    """Whichever node the workflow has there; the links to it hold, as its id and title do."""
    for entry in ({"class_type": "LoadImage", "inputs": {"image": "content.png"}}, {"class_type": "AtelierDemoPicture", "inputs": {"image": "atelier/content.png"}}):
        workflow = {"1": {**entry, "_meta": {"title": "Content"}}, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}
        editor = Editor(workflow, "w", kit)
        editor.set_picture("Content", "portrait-atelier/x.png")
        assert editor.workflow == {"1": {"class_type": "LoadImage", "inputs": {"image": "portrait-atelier/x.png"}, "_meta": {"title": "Content"}}, "2": workflow["2"]}
        assert workflow["1"]["class_type"] == entry["class_type"]
        assert named(workflow) == {"Content": (SHIPPED / "content.png", entry["class_type"] == "LoadImage")}
    with pytest.raises(AtelierError, match='titled "Style"; its pictures: Content'):
        editor.set_picture("Style", "x.png")


@pytest.fixture
def kit():
    """A client of a server that has every node."""
    return SimpleNamespace(url="here", node_info=lambda kind: {"input": {"required": {"images": ["IMAGE"]}}})


def test_a_file_of_the_editor_names_its_twin(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps({"nodes": [], "extra": {"portrait_atelier": {"api": "zepo_demo"}}}))
    with pytest.raises(AtelierError, match=r"--workflow zepo_demo; .*Export \(API\)"):
        load(str(tmp_path / "w.json"))


def test_the_command_starts_with_the_standard_library_alone():
    command = Path(workflow_module.__file__).parents[1] / "atelier.py"
    result = subprocess.run([sys.executable, "-S", str(command), "stylize", "gone.png"], capture_output=True, text=True)  # -S: no packages
    assert result.returncode == 2 and "gone.png: there is no such file" in result.stderr, result.stderr


@pytest.mark.parametrize("name", ["fastface_both_sdxl_hyper", "fastface_stylistic_sdxl_hyper"])
def test_words_for_the_negative_prompt_take_the_place_of_zeros(name):
    info = {"input": {"required": {"text": ("STRING", {})}}}
    editor = Editor(load(name), name, SimpleNamespace(url="", node_info=lambda kind: info))
    switch, = (entry["inputs"] for entry in editor.workflow.values() if entry["class_type"] == "ComfySwitchNode"
               and entry["_meta"]["title"] == "Which null prompt")
    assert switch["switch"] is True
    editor.set_option("negative", "blurred")
    assert switch["switch"] is False
    assert editor.workflow[switch["on_false"][0]]["inputs"]["text"] == "blurred"
