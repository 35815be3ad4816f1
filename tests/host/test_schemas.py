"""What the editor shows: names, tooltips, help pages, locales, ranges."""

import asyncio
import json
from pathlib import Path

import pytest

import portrait_atelier

pytestmark = pytest.mark.quick
ROOT = Path(portrait_atelier.__file__).parent


def schemas():
    async def load():
        return await (await portrait_atelier.comfy_entrypoint()).get_node_list()

    return [node.GET_SCHEMA() for node in asyncio.run(load())]


SCHEMAS = {schema.node_id: schema for schema in schemas()}


def test_the_set_of_nodes():
    assert {"AtelierDemoModelLoader", "AtelierDemoFaceLoader", "AtelierDemoPicture", "AtelierConsistencyFeatureExtract", "AtelierTokenMerge", "AtelierSEACPatch", "AtelierFaceAdapterApply",
            "AtelierFaceAnalysisLoader", "AtelierFaceAdapterLoader", "AtelierFaceIdentityEncode",
            "AtelierScalePowerAttention", "AtelierScheduledSoftmaxAttention",
            "AtelierStyleLoRATrain", "AtelierSourceTrajectory", "AtelierFastSAMMaskBlend", "AtelierLoRACrossInjection",
            "AtelierDecoupledCFG", "AtelierDecoupledCFGGuider", "AtelierFewStepPreset",
            "AtelierFastSAMLoader", "AtelierFastSAMSegment", "AtelierFastSAMMask", "AtelierMaskToLatentGrid", "AtelierCLIPSimilarityLoader"} <= set(SCHEMAS)
    assert all(node_id.startswith("Atelier") for node_id in SCHEMAS)


@pytest.fixture(params=list(SCHEMAS))
def schema(request):
    return SCHEMAS[request.param]


def widgets(schema):
    return [item for item in schema.inputs if hasattr(item, "default") and not getattr(item, "force_input", None)]  # those are sockets


def shown(item):
    """The name on the node: an output without a name shows its type."""
    return item.display_name or (item.id if not item.id.startswith("_") else item.get_io_type())


def test_everything_is_explained(schema):
    assert schema.description and schema.display_name and schema.category.startswith("Portrait Atelier/")
    for item in [*schema.inputs, *schema.outputs]:
        assert item.tooltip and item.tooltip.endswith("."), item.id


def test_at_most_six_plain_widgets(schema):
    assert sum(not item.advanced for item in widgets(schema)) <= 6


def test_defaults_lie_in_their_ranges(schema):
    for item in widgets(schema):
        low, high = getattr(item, "min", None), getattr(item, "max", None)
        if low is not None:
            assert low <= item.default <= high, item.id


def test_help_page_names_everything(schema):
    """In English here; tests/unit/test_help_pages.py compares both languages with the locales."""
    page = (ROOT / "web" / "docs" / schema.node_id / "en.md").read_text(encoding="utf-8")
    for item in [*schema.inputs, *schema.outputs]:
        assert f"`{shown(item)}`" in page, item.id


@pytest.mark.parametrize("language", ["en", "zh"])
def test_locales(schema, language):
    entry = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[schema.node_id]
    assert entry["display_name"] and entry["description"]
    assert set(entry.get("inputs", {})) == {item.id for item in schema.inputs}
    assert set(entry["outputs"]) == {str(i) for i in range(len(schema.outputs))}
    for item in [*entry.get("inputs", {}).values(), *entry["outputs"].values()]:
        assert item["name"] and item["tooltip"]
    if language == "en":
        assert entry["description"] == schema.description and entry["display_name"] == schema.display_name
        for item in schema.inputs:
            assert entry["inputs"][item.id]["tooltip"] == item.tooltip, item.id
        for i, item in enumerate(schema.outputs):
            assert entry["outputs"][str(i)]["tooltip"] == item.tooltip


ZEPO = {
    "AtelierConsistencyFeatureExtract": {"seed": (0, 0, 2**64 - 1), "timestep": (99, 0, 999), "layers": ("auto", None, None)},
    "AtelierTokenMerge": {"ratio": (0.5, 0, 0.75), "seed": (0, 0, 2**64 - 1), "weigh_merged": (False, None, None)},
    "AtelierSEACPatch": {"style_enhancement": (1.2, 0, 3), "strength": (1, 0, 1), "style_share": (0.5, 0, 1), "start": (0, 0, 1),
                         "end": (1, 0, 1), "layers": ("auto", None, None), "balance": ("tokens", None, None), "pairing": ("all", None, None)},
}


@pytest.mark.parametrize("node_id", ZEPO)
def test_defaults_are_the_papers(node_id):
    found = {item.id: (item.default, getattr(item, "min", None), getattr(item, "max", None)) for item in widgets(SCHEMAS[node_id])}
    assert found == ZEPO[node_id]


def test_seeds_do_not_change_by_themselves():
    """The editor adds a control to every input called seed unless told not to; features would be extracted anew each run."""
    for schema in SCHEMAS.values():
        assert all(item.as_dict().get("control_after_generate") is False for item in schema.inputs if item.id == "seed")
