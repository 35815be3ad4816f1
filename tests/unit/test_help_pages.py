"""The nodes' help pages: their pictures, names, and form. tests/browser opens them."""

import json
import re
from pathlib import Path

import pytest

from portrait_atelier.headless.help_pictures import PICTURES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
NAMES = {language: json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
         for language in ("en", "zh")}
SECTIONS = {"en": ("Input", "Inputs", "Output", "Outputs"), "zh": ("输入", "输出")}
# Choices of an input that are spelt like an input.
CHOICES = {"AtelierPickPoints": {"points"}, "AtelierFastSAMMask": {"text"}, "AtelierLoRACrossInjection": {"source"}}
PAGES = [(node, language) for node in NAMES["en"] for language in ("en", "zh")]


def page(node: str, language: str) -> str:
    return (DOCS / node / f"{language}.md").read_text(encoding="utf-8")


def names(node: str, language: str) -> dict:
    """What stands on the node, by the English name."""
    english, shown = NAMES["en"][node], NAMES[language][node]
    found = {name: entry["name"] for name, entry in shown.get("inputs", {}).items()}
    return found | {english["outputs"][number]["name"]: entry["name"] for number, entry in shown["outputs"].items()}


@pytest.mark.parametrize("node, language", PAGES)
def test_names_are_those_on_the_node(node, language):
    text, known = page(node, language), names(node, language)
    assert text.startswith(f"# {NAMES[language][node]['display_name']}\n")
    sections = dict(re.findall(r"^## (.*)\n([^#]*)", text, re.M))
    lists = "".join(sections.get(section, "") for section in SECTIONS[language])
    listed = {name for line in re.findall(r"^- ([^:：]*)[:：]", lists, re.M) for name in re.findall(r"`(.*?)`", line)}
    assert listed == set(known.values())
    quoted = set(re.findall(r"`([^`\n]*)`", text)) | set(re.findall(r"\*\*([^*\n]*)\*\*", text))
    other = {name for name, shown in known.items() if shown != name} - CHOICES.get(node, set()) - set(known.values())
    assert not quoted & other, "English names of inputs that are called otherwise on the node"


@pytest.mark.parametrize("node, language", PAGES)
def test_no_tables_and_no_blocks(node, language):
    """They are wider than the editor's panel."""
    assert not re.search(r"^(\||```|    )", page(node, language), re.M)


def test_every_picture_is_drawn_by_the_command_and_shown_in_both_languages():
    """The editor looks for a page's pictures from web/docs, not from the page."""
    drawn = {path for path in PICTURES if path.startswith("web/docs/")}
    files = {path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*") if path.is_file() and path.suffix != ".md"}
    assert files == drawn
    for language in ("en", "zh"):
        text = "".join(page(node, language) for node in NAMES["en"])
        captioned = re.findall(r"!\[[^\]]+\]\(([^)]*)\)\n\n\*.+\*\n", text)
        assert sorted(f"web/docs/{path}" for path in captioned) == sorted(drawn)


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in DOCS.rglob("*.jpg")) < 3_000_000
