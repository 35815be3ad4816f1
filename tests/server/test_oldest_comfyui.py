"""The oldest ComfyUI that the pack claims to run on gives the pictures of the pinned one."""
import io
import json
from pathlib import Path

import pytest
from PIL import Image, ImageChops

import portrait_atelier

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "demo" / "pictures"
# Every technique once, in few steps: titles of nodes, their inputs.
RUNS = {
    "zepo_demo": {},
    "zepo_demo_face": {"KSampler": {"steps": 2}},
    "fastface_demo": {},
    "diffstyler_demo_regions": {"Train style 1": {"steps": 2}, "Train style 2": {"steps": 2}, "Source Trajectory": {"steps": 2}},
}


def test_it_is_the_version_that_the_pack_names(oldest_server):
    assert oldest_server.client.version() == portrait_atelier.OLDEST


def test_all_nodes_are_there(oldest_server, client):
    def nodes(client):
        return {name for name in client.json("/object_info")[1] if name.startswith("Atelier")}

    assert nodes(oldest_server.client) == nodes(client) and len(nodes(client)) > 20


def drawn(client, workflow):
    image, = client.images(client.run(workflow))
    return Image.open(io.BytesIO(client.download(image))).convert("RGB")


@pytest.mark.parametrize("name", RUNS)
def test_the_pictures_are_the_same(oldest_server, client, name):
    def prepared(client):
        workflow = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        for entry in workflow.values():
            entry["inputs"].update(RUNS[name].get(entry["_meta"]["title"], {}))
            if entry["class_type"] == "LoadImage":
                entry["inputs"]["image"] = client.upload(PICTURES / entry["inputs"]["image"])
        return workflow

    first, second = drawn(client, prepared(client)), drawn(oldest_server.client, prepared(oldest_server.client))
    assert ImageChops.difference(first, second).getbbox() is None
    assert first.size == second.size and first.getextrema() != ((0, 0),) * 3
