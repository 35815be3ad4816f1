"""What the server gives the editor: workflow templates, thumbnails, help pages, translations."""
import json
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NODES = ["AtelierDemoModelLoader", "AtelierConsistencyFeatureExtract", "AtelierTokenMerge", "AtelierSEACPatch"]


def test_the_workflows_are_templates(client):
    templates = client.json("/api/workflow_templates")[1]["portrait-atelier"]
    assert sorted(templates) == ["zepo_demo", "zepo_sd15_lcm", "zepo_sdxl_lightning"]
    for name in templates:
        status, text = client.call(f"/api/workflow_templates/portrait-atelier/{name}.json")
        assert status == 200 and text == (ROOT / "workflows" / f"{name}.json").read_bytes()
        status, picture = client.call(f"/api/workflow_templates/portrait-atelier/{name}.jpg")
        assert status == 200 and picture == (ROOT / "workflows" / f"{name}.jpg").read_bytes()


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.jpg")), ids=lambda path: path.stem)
def test_thumbnails_are_square_and_small(path):
    """The template browser cuts pictures to squares."""
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.width == picture.height >= 400
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_every_workflow_uses_only_nodes_that_the_server_has(client, path):
    """The notes are the editor's own."""
    types = {node["type"] for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]} - {"MarkdownNote"}
    assert [name for name in types if client.node_info(name) is None] == []
    assert {"AtelierConsistencyFeatureExtract", "AtelierTokenMerge", "AtelierSEACPatch"} <= types


@pytest.mark.parametrize("node_id", NODES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_help_pages_and_translations_are_served(client, node_id, language):
    status, page = client.call(f"/extensions/portrait-atelier/docs/{node_id}/{language}.md")
    assert status == 200 and page == (ROOT / "web" / "docs" / node_id / f"{language}.md").read_bytes()
    expected = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[node_id]
    assert client.json("/i18n")[1][language]["nodeDefs"][node_id] == expected
