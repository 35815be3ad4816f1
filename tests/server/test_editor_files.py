"""What the server gives the editor: workflow templates, thumbnails, help pages, translations."""
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from portrait_atelier.headless.workflow import checked

ROOT = Path(__file__).resolve().parents[2]
NODES = sorted(path.name for path in (ROOT / "web" / "docs").iterdir())
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
BLUEPRINTS = sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json"))
API = sorted((ROOT / "workflows" / "api").glob("*.json"))
FILES = {"ckpt_name", "lora_name", "clip_name", "unet_name", "vae_name", "pack", "file", "model", "model_name", "dino", "image"}  # inputs that name files which are not here


def test_the_workflows_are_templates(client):
    templates = client.json("/api/workflow_templates")[1]["portrait-atelier"]
    assert sorted(templates) == sorted(WORKFLOWS)
    for name in templates:
        status, text = client.call(f"/api/workflow_templates/portrait-atelier/{quote(name)}.json")
        assert status == 200 and text == (ROOT / "workflows" / f"{name}.json").read_bytes()
        status, picture = client.call(f"/api/workflow_templates/portrait-atelier/{quote(name)}.jpg")
        assert status == 200 and picture == (ROOT / "workflows" / f"{name}.jpg").read_bytes()


def test_the_blueprints_are_served(client):
    served = {entry["name"]: key for key, entry in client.json("/global_subgraphs")[1].items()
              if entry["info"]["node_pack"] == "custom_nodes.portrait-atelier"}
    assert sorted(served) == BLUEPRINTS
    for name, key in served.items():
        assert client.json(f"/global_subgraphs/{key}")[1]["data"] == (ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.jpg")), ids=lambda path: path.stem)
def test_thumbnails_are_square_and_small(path):
    """The template browser cuts pictures to squares."""
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.width == picture.height >= 400
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_every_workflow_uses_only_nodes_that_the_server_has(client, path):
    """The notes are the editor's own."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    subgraphs = {subgraph["id"]: subgraph for subgraph in graph.get("definitions", {}).get("subgraphs", [])}
    types = {node["type"] for level in (graph, *subgraphs.values()) for node in level["nodes"]} - {"MarkdownNote", *subgraphs}
    assert [name for name in types if client.node_info(name) is None] == []
    parts = {"zepo": {"AtelierConsistencyFeatureExtract", "AtelierTokenMerge", "AtelierSEACPatch"}, "fastface": {"AtelierFaceAdapterApply"},
             "both": {"AtelierDecoupledCFG", "AtelierScalePowerAttention", "AtelierScheduledSoftmaxAttention"}}
    api = graph["extra"].get("portrait_atelier", {}).get("api", path.stem)
    assert set().union(*(nodes for word, nodes in parts.items() if word in api.split("_"))) <= types


@pytest.mark.quick
@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_api_workflows_fit_the_nodes(client, path):
    """Every input is one of the node's and no required one is missing; links have the input's type; values lie in their ranges."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    info = {kind: client.node_info(kind) for kind in {entry["class_type"] for entry in workflow.values()}}
    for node, entry in workflow.items():
        groups = info[entry["class_type"]]["input"]
        known = {**groups.get("required", {}), **groups.get("optional", {})}
        assert set(groups.get("required", {})) <= set(entry["inputs"]) <= set(known), node
        for name, value in entry["inputs"].items():
            if isinstance(value, list):
                output = info[workflow[value[0]]["class_type"]]["output"][value[1]]
                # A switch passes on what it gets.
                assert output in known[name][0].split(",") or "COMFY_MATCHTYPE_V3" in (output, known[name][0]), (node, name)
            elif name not in FILES and known[name][0] != "IMAGECOMPARE":  # the editor's own, of no use to anybody else
                assert checked(known[name], str(value), name) == value, node


def test_every_node_is_used_by_a_shipped_workflow(client):
    used = {entry["class_type"] for path in API for entry in json.loads(path.read_text(encoding="utf-8")).values()}
    assert {kind for kind in client.json("/object_info")[1] if kind.startswith("Atelier")} - used == set()  # without a workflow


@pytest.mark.parametrize("node_id", NODES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_help_pages_and_translations_are_served(client, node_id, language):
    status, page = client.call(f"/extensions/portrait-atelier/docs/{node_id}/{language}.md")
    assert status == 200 and page == (ROOT / "web" / "docs" / node_id / f"{language}.md").read_bytes()
    expected = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[node_id]
    assert client.json("/i18n")[1][language]["nodeDefs"][node_id] == expected
