"""The README leads to every document, and no link is dead."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [path for folder in (".", "docs", "demo") for path in sorted((ROOT / folder).glob("*.md"))]


def links(path: Path) -> list:
    """The files that a document links to, pictures too."""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    return [(path.parent / link).resolve() for link in found if "://" not in link]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_link_is_dead(path):
    assert [link for link in links(path) if not link.exists()] == []


def test_every_document_is_reached_from_the_readme():
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        new = {link for path in new if path.suffix == ".md" for link in links(path)} - reached
    assert set(DOCUMENTS) | set((ROOT / "docs" / "images").iterdir()) <= reached


def test_the_readme_has_no_placeholders_and_stays_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"[A-Z]{4,}-OF-|<[A-Z]|example\.(com|org)", text)
    assert len(text.splitlines()) <= 150
