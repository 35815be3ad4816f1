"""Lists of values, and their contact sheet."""
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from portrait_atelier.headless import AtelierError, sheet
from portrait_atelier.headless.sweep import axes, sweep
from portrait_atelier.headless.workflow import listed

FLOAT = ("FLOAT", {"min": 0.0, "max": 3.0})


@pytest.mark.parametrize("spec, text, values", [
    (FLOAT, "0.8, 1.0,1.2", [0.8, 1.0, 1.2]), (FLOAT, "1", [1.0]), (FLOAT, "1,1.0", [1.0]), (("INT", {}), "1,2", [1, 2]),
    (("BOOLEAN", {}), "on,off", [True, False]), ((["a", "b", "c"],), "a,c", ["a", "c"]), ((["a,c", "a", "c"],), "a,c", ["a,c"]),
    (("COMBO", {"options": ["a", "b"]}), "b,a", ["b", "a"]), (("STRING", {}), "ink, old, torn", ["ink, old, torn"]),
    (("COMFY_DYNAMICCOMBO_V3", {}), "a,b", ["a,b"]),
])
def test_values(spec, text, values):
    assert listed(spec, text, "--set x") == values


@pytest.mark.parametrize("text", ["0,8", "1,,2", "1,", "1,2.5,nine"])
def test_wrong_lists_say_what_commas_are_for(text):
    with pytest.raises(AtelierError, match="decimals take a point"):
        listed(FLOAT, text, "--set x")


WORKFLOW = {"1": {"class_type": "Load", "inputs": {"size": 1}}, "2": {"class_type": "Patch", "inputs": {"of": ["1", 0], "size": 1}},
            "3": {"class_type": "Sample", "inputs": {"of": ["2", 0], "seed": 1}}}


def editor(**lists):
    return SimpleNamespace(workflow=WORKFLOW, lists={flag: [place] for flag, place in lists.items()})


def test_what_costs_most_changes_slowest():
    late, early = ("3", "seed", [1, 2]), ("1", "size", [3, 4])
    assert [axis.name for axis in axes(editor(a=late, b=early))] == ["size", "seed"]
    assert [axis.name for axis in axes(editor(a=early, b=late))] == ["size", "seed"]
    assert [axis.name for axis in axes(editor(a=early, b=("2", "size", [5, 6])))] == ["Load size", "Patch size"]
    with pytest.raises(AtelierError, match="3 lists"):
        axes(editor(a=early, b=late, c=late))


class Said(list):
    say = list.append

    def clear(self):
        return None


def test_a_failure_keeps_what_is_finished_and_shows_it(tmp_path):
    def run(workflow, path, prefix):
        if workflow["3"]["inputs"]["seed"] == "a/b":
            raise AtelierError(prefix + "no")
        Image.new("RGB", (60, 40), "red").save(path)
        return path

    said = Said()
    with pytest.raises(AtelierError, match=r"\(3 of 4\) no"):
        sweep(editor(a=("3", "seed", ["x", "a:?*", "a/b", "y"])), tmp_path / "out.png", run, said, None)
    kept = [tmp_path / "out_seed-x.png", tmp_path / "out_seed-a-.png"]
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "out.png"])
    assert said == [f"Note: 2 of 4 pictures are finished and kept: {kept[0]}, {kept[1]}"]


def cells(tmp_path):
    for name, size in (("a", (600, 300)), ("b", (100, 200))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    return [("first", tmp_path / "a.png"), ("second", tmp_path / "b.png"), ("third", None)]


def test_a_sheet_has_a_cell_and_a_label_for_each_picture(tmp_path):
    assert sheet.make(cells(tmp_path), 2, tmp_path / "sheet.png", None) is None
    picture = Image.open(tmp_path / "sheet.png")
    cell = (512 + 8, 256 + 22 + 8)
    assert picture.size == (2 * cell[0] + 8, 2 * cell[1] + 8)

    def colours(left, top, width, height):
        return {colour for _, colour in picture.crop((left, top, left + width, top + height)).getcolors(99999)}

    assert colours(8, 30, 512, 256) == {(255, 0, 0)} and colours(8 + cell[0], 30, 100, 200) == {(255, 0, 0)}
    assert min(colours(8, 8, 100, 22)) == (0, 0, 0) == min(colours(8 + cell[0], 8, 100, 22))  # the labels
    assert colours(0, cell[1] + 8, *cell) == {(255, 255, 255)}  # a picture that was not reached


def test_a_python_without_pillow_asks_another_or_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet.importlib.util, "find_spec", lambda name: None)
    assert "has no Pillow" in sheet.make(cells(tmp_path), 2, tmp_path / "sheet.png", None) and not (tmp_path / "sheet.png").exists()
    assert sheet.make(cells(tmp_path), 2, tmp_path / "sheet.png", sys.executable) is None
    assert Image.open(tmp_path / "sheet.png").width > 1000
    (tmp_path / "b.png").write_bytes(b"broken")
    assert "cannot identify" in sheet.make([("x", tmp_path / "b.png")], 1, tmp_path / "x.png", sys.executable)


def test_the_program_takes_its_task_from_standard_input(tmp_path):
    task = {"cells": [[label, path and str(path)] for label, path in cells(tmp_path)], "columns": 3, "output": str(tmp_path / "s.png")}
    subprocess.run([sys.executable, sheet.__file__], input=json.dumps(task), text=True, check=True)
    assert Image.open(tmp_path / "s.png").width > 1500
