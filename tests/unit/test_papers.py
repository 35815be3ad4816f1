"""docs/papers.md leads to code that exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")


def test_functions_exist_and_name_their_place():
    places = re.findall(r"`([\w/]+\.py):(\w+)`", TEXT)
    assert len(places) >= 10
    for path, name in places:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        found = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name]
        assert found and ast.get_docstring(found[0]), (path, name)


def test_files_exist():
    for path in re.findall(r"`([\w/]+\.(?:py|json))`", TEXT):
        assert (ROOT / path).is_file(), path


def test_the_equations_are_named_in_the_code():
    sources = "\n".join(path.read_text(encoding="utf-8") for folder in ("attention", "host") for path in (ROOT / folder).glob("*.py"))
    for number in (6, 7, 8, 9, 10):
        assert re.search(rf"[Ee]quations? \(?{number}\)?|\({number}\)", sources), number
