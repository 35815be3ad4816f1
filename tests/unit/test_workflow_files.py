"""The editor's workflows and the blueprints, read from their files."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "workflows").glob("*.json"))
}
BLUEPRINTS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "subgraphs").glob("*.json"))
}


def subgraphs(graph):
    return {subgraph["name"]: subgraph for subgraph in graph.get("definitions", {}).get("subgraphs", [])}


def test_every_blueprint_is_one_subgraph_and_used():
    for name, graph in BLUEPRINTS.items():
        assert [node["title"] for node in graph["nodes"]] == list(subgraphs(graph)) == [name]
        assert graph["nodes"][0]["type"] == subgraphs(graph)[name]["id"] and subgraphs(graph)[name]["description"]
        assert any(name in subgraphs(workflow) for workflow in WORKFLOWS.values()), name


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_subgraph_is_the_same_everywhere(name):
    """As its blueprint has it, or as every other workflow has it."""
    for title, subgraph in subgraphs(WORKFLOWS[name]).items():
        for other in (*BLUEPRINTS.values(), *WORKFLOWS.values()):
            assert subgraphs(other).get(title, subgraph) == subgraph, title


@pytest.mark.parametrize("name", WORKFLOWS)
def test_ids_are_unique(name):
    """Else the editor would number nodes anew when it opens the file, and their ids in the API form would change."""
    levels = [WORKFLOWS[name], *subgraphs(WORKFLOWS[name]).values()]
    ids = [node["id"] for level in levels for node in level["nodes"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_surface(name):
    """A note and at most seven other nodes; the result is saved and compared."""
    nodes = WORKFLOWS[name]["nodes"]
    types = [node["type"] for node in nodes]
    assert len(nodes) <= 8 and types.count("MarkdownNote") == 1 and types.count("ImageCompare") == 1
    assert [node["type"] for node in nodes if node["title"] == "Result"] == ["SaveImage"]


def test_demos_come_first_where_cards_are_sorted():
    demos = [name for name, graph in WORKFLOWS.items() if "_demo" in graph["extra"]["portrait_atelier"]["api"]]
    assert list(WORKFLOWS)[: len(demos)] == demos
