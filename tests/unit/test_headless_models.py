"""models.json, the one table of weights, against the workflows and the documents; and the command's answer."""
import json
import os
import re
import runpy
from pathlib import Path

import pytest

from portrait_atelier.headless import models
from portrait_atelier.headless.workflow import load, shipped

ROOT = Path(__file__).resolve().parents[2]
FILES = runpy.run_path(str(Path(__file__).with_name("test_headless_checkpoint.py")))
ENTRIES = {(entry["name"], entry["folder"]): entry for entry in models.entries()}


def test_entries_are_unique_and_whole():
    assert len(ENTRIES) == len(models.entries())
    for entry in ENTRIES.values():
        assert set(entry) <= {"name", "folder", "page", "licence", "size", "url", "note", "family", "kind", "steps"}
        assert entry["licence"] and (entry["page"] or entry["note"]) and entry["folder"] in models.INPUTS.values()
        assert not entry.get("url") or entry["url"].startswith(entry["page"].split("/tree/")[0])


@pytest.mark.parametrize("name", shipped())
def test_every_file_that_a_workflow_names_is_in_the_table(name):
    for _, _, file, folder in models.needs(load(name)):
        assert (file, folder) in ENTRIES


def editor_nodes(path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    return graph["nodes"] + [node for part in (graph.get("definitions") or {}).get("subgraphs", []) for node in part["nodes"]]


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_the_editors_workflows_say_the_same(path):
    """Where the editor offers a download, and where a note links a file's name to its page."""
    for node in editor_nodes(path):
        for model in (node.get("properties") or {}).get("models", []):
            assert model["url"] == ENTRIES[model["name"], model["directory"]].get("url")
        for name, page in re.findall(r"\[([\w.-]+\.(?:safetensors|bin|onnx))\]\((\S+)\)", str(node.get("widgets_values"))):
            pages = [entry["page"] for (file, _), entry in ENTRIES.items() if Path(file).name == name]
            assert page in pages, name


def test_the_documents_tables_say_the_same():
    """A row of a table that names a file of models.json names its folder too."""
    seen = set()
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            for (name, folder), entry in ENTRIES.items():
                if line.startswith("|") and f"`{name}`" in line:
                    assert f"models/{folder}" in line, (path, line)
                    seen.add(name)
                    licence = entry["licence"]
                    assert not licence.startswith("Creative") or licence in line, (path, line)
    assert {"v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors", "lcm-lora-sdv1-5.safetensors"} <= seen


@pytest.fixture
def shelf(tmp_path):
    """shelf(*names) puts empty files into models/ and returns what `models.local` would."""
    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        folders = {folder: [str(tmp_path / folder)] for folder in set(models.INPUTS.values())}
        return folders, {folder: models.files(Path(path)) for folder, (path,) in folders.items()}

    return make


def block(lines, name):
    """The lines of one workflow in the table."""
    at = next(at for at, line in enumerate(lines) if line.startswith(name + " "))
    end = next(end for end in range(at + 1, len(lines)) if not lines[end].startswith(" "))
    return "\n".join(lines[at:end])


def test_the_table_says_what_is_there_and_where_the_rest_comes_from(shelf, tmp_path):
    lines = models.table(*shelf("checkpoints/v1-5-pruned-emaonly-fp16.safetensors", "insightface/models/buffalo_l/det_10g.onnx"))
    text = "\n".join(lines)
    assert "nothing to get" in block(lines, "zepo_demo")
    assert "there    checkpoints/v1-5-pruned-emaonly-fp16" in block(lines, "zepo_sd15_lcm")
    assert "missing  loras/lcm-lora-sdv1-5" in block(lines, "zepo_sd15_lcm")
    assert "there    insightface/models/buffalo_l" in block(lines, "fastface_both_sd15_lcm")
    assert str(tmp_path / "loras") in text
    missing = text.partition("Missing, ")[2]
    assert "https://huggingface.co/latent-consistency/lcm-lora-sdv1-5" in missing and "rename it" in missing
    assert "v1-5-pruned" not in missing and "buffalo_l" not in missing


def test_another_checkpoint_of_the_family_will_do(shelf, tmp_path):
    lists = shelf("checkpoints/notes.txt")
    FILES["safetensors"](tmp_path / "checkpoints" / "painted.safetensors", FILES["SDXL"])
    (tmp_path / "checkpoints" / "broken.safetensors").write_bytes(b"x")
    lines = models.table(lists[0], {**lists[1], "checkpoints": models.files(tmp_path / "checkpoints")})
    assert "other    checkpoints/sd_xl_base_1.0.safetensors; there: painted.safetensors" in block(lines, "zepo_sdxl_lightning")
    assert "missing  checkpoints/v1-5" in block(lines, "zepo_sd15_lcm")


def test_a_loop_of_links_is_walked_once(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.safetensors").touch()
    os.symlink(tmp_path, tmp_path / "sub" / "again")
    assert [name for name in models.files(tmp_path) if name.endswith("x.safetensors")] == ["sub/x.safetensors"]
