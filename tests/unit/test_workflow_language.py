"""Every title, group, note and label of the editor's workflows has its Chinese text. tests/browser loads them in Chinese."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["portraitAtelier"]["workflows"]
LINE = re.search(r"const LINE = /(.*)/gm;", (ROOT / "web" / "js" / "workflow_language.js").read_text(encoding="utf-8"))[1]
FILES = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "workflows").glob("*.json"))}
MARKED = [name for name, graph in FILES.items() if "portrait_atelier" in graph.get("extra", {})]
# Words that Chinese has too.
SAME = {"clip": "CLIP", "vae": "VAE", "cfg": "CFG", **{name: name for name in ("CLIP", "LCM-LoRA", "Hyper LoRA", "Lightning LoRA")}}


def texts(graph: dict) -> set:
    """What the editor shows of a workflow, or of a subgraph in it, and does not translate by itself."""
    found = {node["title"] for node in graph["nodes"] if node.get("title")} | {group["title"] for group in graph.get("groups", [])}
    for node in graph["nodes"]:
        if node["type"] in ("MarkdownNote", "Note"):
            found |= {words for _, words in re.findall(LINE, node["widgets_values"][0], re.M)}
    for level in graph.get("definitions", {}).get("subgraphs", []):
        slots = [*level.get("inputs", []), *level.get("outputs", [])]
        found |= {level["name"]} | {slot.get("label") or slot["name"] for slot in slots} | texts(level)
    return found


@pytest.mark.parametrize("name", MARKED)
def test_every_text_has_its_chinese(name):
    assert sorted(texts(FILES[name]) - set(TABLE)) == []


def test_the_table_holds_chinese():
    assert {text: shown for text, shown in TABLE.items() if not re.search("[\u4e00-\u9fff]", shown)}.items() <= SAME.items()
    for text, shown in TABLE.items():  # bold marks stay in pairs: the editor shows odd ones as stars
        assert shown.count("**") % 2 == 0 and ("**" in shown) == ("**" in text), text
        assert re.findall(r"\]\((.*?)\)", shown) == re.findall(r"\]\((.*?)\)", text), text
