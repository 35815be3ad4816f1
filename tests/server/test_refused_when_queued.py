"""A typing error costs no work: POST /prompt answers 400, tells it at the node and the input, and nothing is queued."""
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "demo" / "pictures"


@pytest.fixture
def queued(client):
    """queued(name, class_type, input, value): the demo graph with this in it -> node id, status, node_errors."""
    def queued(name, kind, key, value):
        workflow = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        for entry in workflow.values():
            if entry["class_type"] == "LoadImage":
                entry["inputs"]["image"] = client.upload(PICTURES / entry["inputs"]["image"])
        node = next(node for node, entry in workflow.items() if entry["class_type"] == kind)
        workflow[node]["inputs"][key] = value
        before = client.json("/prompt")[1], client.json("/history")[1]
        status, answer = client.json("/prompt", {"prompt": workflow})
        assert (client.json("/prompt")[1], client.json("/history")[1]) == before
        return node, status, answer["node_errors"]

    return queued


@pytest.mark.parametrize("name, kind, key, value, words", [
    ("diffstyler_demo", "AtelierLoRACrossInjection", "layers", "f=4-11;sa=3-11;ac=3-11", "'ac=3-11' is not understood. Write auto"),
    ("diffstyler_demo", "AtelierStyleLoRATrain", "cancel_prefix", "../lora", "where an unfinished LoRA cannot be kept"),
    ("zepo_demo", "AtelierSEACPatch", "layers", "u1-8, dd3", "'dd3' names no layer of any model. Write auto, all or"),
    ("zepo_demo", "AtelierConsistencyFeatureExtract", "layers", "u8-1", "'u8-1' names no layer"),
])
def test_a_typing_error_in_a_demo(queued, name, kind, key, value, words):
    node, status, errors = queued(name, kind, key, value)
    assert status == 400 and list(errors) == [node]
    error, = errors[node]["errors"]
    assert (error["type"], error["extra_info"]["input_name"]) == ("custom_validation_failed", key)
    assert error["details"].startswith(f"{key} - '{key}' of ") and f"is '{value}'" in error["details"] and words in error["details"]


@pytest.mark.parametrize("value, kind", [(1.5, "value_bigger_than_max"), (-0.5, "value_smaller_than_min")])
def test_comfyui_checks_the_numbers_beside(queued, value, kind):
    node, status, errors = queued("zepo_demo", "AtelierSEACPatch", "strength", value)
    error, = errors[node]["errors"]
    assert status == 400 and (error["type"], error["extra_info"]["input_name"]) == (kind, "strength")
