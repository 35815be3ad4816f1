"""What the editor makes of the nodes: widgets, tooltips, help pages, languages."""
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCALE = {language: json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")) for language in ("en", "zh")}
# Widgets in their order, advanced ones apart.
WIDGETS = {
    "AtelierConsistencyFeatureExtract": (["seed", "timestep"], ["layers"]),
    "AtelierTokenMerge": (["ratio", "seed"], ["weigh_merged"]),
    "AtelierSaveFeatures": (["name", "replace"], []),
    "AtelierLoadFeatures": (["file"], []),
    "AtelierSameNoise": ([], []),
    "AtelierSEACPatch": (["style_enhancement", "strength", "style_share", "start", "end", "layers"], ["balance", "pairing"]),
    "AtelierSEACTrace": ([], []),
    "AtelierSEACReport": ([], []),
    "AtelierDemoModelLoader": ([], []),
    "AtelierFaceAdapterApply": (["weight", "lora_strength", "shortcut", "start", "end"], ["skip_middle"]),
    "AtelierScalePowerAttention": (["power", "scale_down", "scale_up", "layers", "start", "end"], ["preset"]),
    "AtelierScheduledSoftmaxAttention": (["sharpness", "scale", "adain_weight", "layers", "start", "end"], ["quantile", "coupling"]),
    "AtelierSourceTrajectory": (["mode", "steps", "fixed_point", "seed"], ["memory_mb"]),
    "AtelierFastSAMMaskBlend": (["lora_name", "strength"], []),
    "AtelierLoRACrossInjection": (["preset", "cfg", "feature_until", "attention_until", "background"], ["layers", "rows_per_forward"]),
    "AtelierDecoupledCFG": (["formulation", "alpha", "beta", "rescale"], ["rescale_steps", "routing"]),
    "AtelierDecoupledCFGGuider": (["formulation", "alpha", "beta", "rescale"], ["rescale_steps", "routing"]),
    "AtelierReferenceWeight": (["weight", "start", "end"], ["layers"]),
    "AtelierFewStepPreset": (["base", "steps", "denoise"], []),
    "AtelierFaceAnalysisLoader": (["pack", "provider"], []),
    "AtelierFaceAdapterLoader": (["file", "version"], []),
    "AtelierFaceIdentityEncode": (["pick", "if_no_face", "combine"], ["face_index", "clip_channels"]),
    "AtelierStyleLoRATrain": (["rank", "steps", "learning_rate", "resolution", "seed", "augment"], ["targets", "checkpointing", "cancel_prefix"]),
    "AtelierFastSAMLoader": (["file", "provider"], []),
    "AtelierFastSAMSegment": (["size", "conf", "iou", "max_det", "mask_mode"], []),
    "AtelierPickPoints": (["points", "picture"], []),
    "AtelierFastSAMMask": (["mode", "text", "pick", "amount", "min_area"], ["dedupe", "invert", "point_rule", "text_crop"]),
    "AtelierMaskToLatentGrid": (["grow", "feather"], ["row"]),
    "AtelierCLIPSimilarityLoader": (["model", "dino"], []),
    "AtelierAlignFace": (["size", "face", "smoothing"], []),
    "AtelierPasteFace": (["feather", "opacity"], []),
    "AtelierMMFSLoader": (["file"], ["precision"]),
    "AtelierMMFSStyleSeed": (["seed", "mix_seed", "mix_at"], []),
    "AtelierMMFSStylePrompt": (["text"], []),
    "AtelierMMFSStylize": (["blend", "noise", "seed"], []),
    "AtelierMMFSFewShot": (["text", "steps", "lr", "seed"], ["batch", "micro_batch", "structure", "clip", "projection", "style_jitter"]),
    "AtelierMMFSSave": (["name", "dtype"], []),
    "AtelierStyleGANLoader": (["file"], ["precision"]),
    "AtelierStyleGANGenerate": (["seed", "count", "truncation", "mix_seed", "mix_at", "blend"], []),
    "AtelierDemoFaceLoader": ([], []),
    "AtelierDemoPicture": (["image", "upload"], []),
}
# Make a node, and tell what the editor knows of it, in the form of locales/*/nodeDefs.json.
TELL = """type => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    const {display_name, description, inputs, outputs} = LiteGraph.registered_node_types[type].nodeData;
    return {
        title: node.title, display_name, description,
        plain: (node.widgets ?? []).filter(w => !w.options.advanced).map(w => w.name),
        advanced: (node.widgets ?? []).filter(w => w.options.advanced).map(w => w.name),
        inputs: Object.fromEntries(Object.values(inputs).map(input => [input.name, input.tooltip])),
        outputs: outputs.map(output => output.tooltip),
        labels: Object.fromEntries(node.inputs.map(input => [input.name, input.label ?? input.localized_name ?? input.name])),
    };
}"""

# Whether these pictures of the help page, and no others, have arrived.
PICTURES = """files => {
    const shown = [...document.querySelectorAll('.node-help-content img')];
    return shown.length === files.length && shown.every((img, i) => img.src.endsWith(files[i]) && img.complete && img.naturalWidth > 100);
}"""
# What of the help page would scroll sideways.
SIDEWAYS = """() => {
    const help = document.querySelector('.node-help-content');
    return [help, ...help.querySelectorAll('*')].filter(part => part.scrollWidth > part.clientWidth && getComputedStyle(part).display !== 'inline')
        .map(part => part.outerHTML.slice(0, 200));
}"""


def test_every_node_is_here():
    assert set(WIDGETS) == set(LOCALE["en"]) == set(LOCALE["zh"])


@pytest.mark.parametrize("node_id", WIDGETS)
def test_widgets_and_tooltips(page, node_id):
    found, expected = page.evaluate(TELL, node_id), LOCALE["en"][node_id]
    assert (found["plain"], found["advanced"]) == WIDGETS[node_id]
    assert found["title"] == expected["display_name"] and found["description"] == expected["description"]
    found["inputs"].pop("upload", None)  # the editor's own button, with the tooltip of the pictures' list
    assert found["inputs"] == {name: entry["tooltip"] for name, entry in expected.get("inputs", {}).items()}
    assert found["outputs"] == [entry["tooltip"] for _, entry in sorted(expected["outputs"].items())]
    assert page.errors == []


@pytest.mark.parametrize("node_id", WIDGETS)
def test_help_page(page, node_id):
    assert_help(page, node_id, "en")


def test_chinese(open_tab):
    """Names on the nodes, and the help page. (The editor translates tooltips only when it shows one.)"""
    tab = open_tab(Comfy_Locale="zh")
    try:
        for node_id in WIDGETS:
            found, expected = tab.evaluate(TELL, node_id), LOCALE["zh"][node_id]
            assert found["title"] == expected["display_name"]
            names = {name: entry["name"] for name, entry in expected.get("inputs", {}).items()}
            assert {name: found["labels"][name] for name in names} == names  # the editor adds an upload button of its own
            assert_help(tab, node_id, "zh")
        assert tab.errors == []
    finally:
        tab.context.close()


def assert_help(page, node_id, language):
    """Select a node and press the button with the i, as a user does: the first line of its help page appears."""
    page.evaluate("""type => {
        app.graph.clear();
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        node.pos = [300, 300];
        app.canvas.ds.reset();
        app.canvas.selectNode(node);
        app.canvas.setDirty(true, true);
    }""", node_id)
    page.get_by_test_id("info-button").click()
    text = (ROOT / "web" / "docs" / node_id / f"{language}.md").read_text(encoding="utf-8")
    page.get_by_text(text.splitlines()[2].replace("`", "").replace("*", "")).wait_for()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    page.wait_for_function(PICTURES, arg=pictures)
    assert page.evaluate(SIDEWAYS) == []
