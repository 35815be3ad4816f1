"""The workflows for transformers from end to end: a tiny random model of the class stands in for each file."""
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADERS = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
# Those that edit make a million pixels of their photo: their VAE makes them smaller.
FAMILIES = {
    "style_z_image_turbo": ("zimage", 8),
    "zepo_z_image_regions": ("zimage", 8),
    "style_flux2_klein": ("flux2", 16),
    "style_krea2_turbo": ("krea2", 8),
    "style_qwen_edit_lightning": ("qwen", 64),
    "edit_flux2_klein_sliders": ("flux2", 128),
}


def test_every_workflow_with_a_transformer_is_here():
    files = (ROOT / "workflows" / "api").glob("*.json")
    assert {path.stem for path in files if "UNETLoader" in path.read_text(encoding="utf-8")} == set(FAMILIES)


def shrunk(name: str) -> dict:
    """The workflow with tiny models in place of files, for pictures of 128 x 128."""
    family, factor = FAMILIES[name]
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    behind = {node: entry["inputs"]["model"] for node, entry in graph.items() if entry["class_type"] == "LoraLoaderModelOnly"}
    graph["kit"] = {"class_type": "KitTransformer", "inputs": {"family": family, "factor": factor}}
    outputs = {node: LOADERS[entry["class_type"]] for node, entry in graph.items() if entry["class_type"] in LOADERS}
    assert set(outputs.values()) == {0, 1, 2}
    for node in (*behind, *outputs):
        del graph[node]
    for entry in graph.values():
        inputs = entry["inputs"]
        for key, value in inputs.items():
            if isinstance(value, list) and value[0] in behind:
                value = behind[value[0]]
            if isinstance(value, list) and value[0] in outputs:
                value = ["kit", outputs[value[0]]]
            inputs[key] = 128 if key in ("width", "height") else value
    return graph


@pytest.mark.parametrize("name", FAMILIES)
def test_it_runs_and_our_node_acts(client, name):
    graph, pictures, off = shrunk(name), [], {"AtelierSEACPatch": {"strength": 0.0}, "AtelierReferenceWeight": {"weight": 0.0}}
    for change in ({}, off):
        for entry in graph.values():
            entry["inputs"].update(change.get(entry["class_type"], {}))
        image, = client.images(client.run(graph))
        pictures.append(client.download(image))
    assert pictures[0].startswith(b"\x89PNG") and pictures[0] != pictures[1]


def test_the_report_outlives_the_cache(client):
    """Of the demo: the same again gives it again; another seed samples again with the same trace; then SEAC is off."""
    graph = json.loads((ROOT / "workflows" / "api" / "zepo_demo_regions.json").read_text(encoding="utf-8"))
    nodes = {entry["class_type"]: node for node, entry in graph.items()}
    report, sampler, patches = nodes["AtelierSEACReport"], nodes["KSampler"], []
    patches = [entry["inputs"] for entry in graph.values() if entry["class_type"] == "AtelierSEACPatch"]

    def told():
        output = client.run(graph)[report]
        assert len(output["images"]) == 2 and client.download(output["images"][0]).startswith(b"\x89PNG")
        return output["text"][0]

    first = told()
    assert first.startswith("SEAC acted in 8 of 8 layers and 4 of 4 steps.\nReference 1 got ") and told() == first
    graph[sampler]["inputs"]["seed"] = 5
    second = told()
    assert second != first and second.startswith("SEAC acted in 8 of 8 layers")
    graph[sampler]["inputs"]["steps"] = 2
    patches[0]["end"] = 0.3
    graph["99"] = {"class_type": "PreviewAny", "inputs": {"source": [report, 0]}}
    text = told()
    assert "Reference 1 could do nothing: no step lies in its window" in text and "Reference 2 got " in text
    for inputs in patches:
        inputs["strength"] = 0.0
    assert told().startswith("SEAC did nothing: its strength is 0.")
