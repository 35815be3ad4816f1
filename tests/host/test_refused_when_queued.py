"""What validate_inputs of the nodes refuses, and that it takes nothing away from the checks that ComfyUI makes itself.

tests/server/test_refused_when_queued.py asks a server; here are all nodes and inputs.
"""
import asyncio
import inspect

import pytest
from comfy_api.internal import first_real_override
from comfy_api.latest import io

import portrait_atelier

NODES = {node.GET_SCHEMA().node_id: node for node in asyncio.run(asyncio.run(portrait_atelier.comfy_entrypoint()).get_node_list())}
CHECKING = {name: function for name, node in NODES.items() if (function := first_real_override(node, "validate_inputs"))}
NUMBERS = [(name, item) for name, node in NODES.items() for item in node.SCHEMA.inputs if isinstance(item, (io.Int.Input, io.Float.Input))]

BAD_LAYERS = {
    "x3": "'x3'", "u1;d2": "'u1;d2'", "u1, u8-1": "'u8-1'", "u0.9-2": "'u0.9-2'", "m1": "'m1'", "m0-1": "'m0-1'", "U1-8, 7": "'7'", "autos": "'autos'",
    "u-1": "'u-1'", "u1.": "'u1.'",
}
GOOD_LAYERS = ["auto", "all", "u1-8, d3, m, u0.2-9", "u1-u8", "D, M0 ,U", "m0-0.2"]
BAD_SITES = {"x=1": "'x=1'", "f": "'f'", "f=": "'f='", "f=4-1": "'f=4-1'", "f=u1": "'f=u1'", "f=1;sa=9-2": "'sa=9-2'", "sa=x3": "'sa=x3'",
             "ca=m2": "'ca=m2'", "auto;f=1": "'auto'"}
GOOD_SITES = ["auto", " Auto ", "", "f=4-11;sa=3-11;ca=3-11", "sa=u1-8,d3,m0", "f=4,6-8; ca = 3", "sa=all"]
BAD_VALUES = {"": "empty", "1, three": "'three'", "1; 2": "'1;'", "nan": "'nan'", "1, inf": "'inf'", "1e999": "'1e999'"}
GOOD_VALUES = ["1", "1, 0.5", "1 2 3", "1,2，3"]
BAD_SCALES = {**BAD_VALUES, "-1": "between 0 and 10", "1, 11": "is 11.0"}

ELSEWHERE = {"AtelierFastSAMMask", "AtelierDemoPicture", "AtelierPickPoints"}  # below, and in tests of their own
TEXTS = {
    ("AtelierConsistencyFeatureExtract", "layers"): ({**BAD_LAYERS, "": "no layer", " , ": "no layer"}, GOOD_LAYERS),
    ("AtelierSEACPatch", "layers"): (BAD_LAYERS, [*GOOD_LAYERS, ""]),
    ("AtelierReferenceWeight", "layers"): (BAD_LAYERS, [*GOOD_LAYERS, "b0-14", ""]),
    ("AtelierLoRACrossInjection", "layers"): (BAD_SITES, GOOD_SITES),
    ("AtelierScalePowerAttention", "layers"): (BAD_LAYERS, [*GOOD_LAYERS, "d,u", ""]),
    ("AtelierScalePowerAttention", "scale_down"): (BAD_SCALES, GOOD_VALUES),
    ("AtelierScalePowerAttention", "scale_up"): (BAD_SCALES, GOOD_VALUES),
    ("AtelierScheduledSoftmaxAttention", "layers"): (BAD_LAYERS, [*GOOD_LAYERS, "d,u", ""]),
    ("AtelierScheduledSoftmaxAttention", "sharpness"): ({**BAD_VALUES, "1001": "between 0 and 1000"}, [*GOOD_VALUES, "1000"]),
    ("AtelierScheduledSoftmaxAttention", "scale"): (BAD_SCALES, GOOD_VALUES),
    ("AtelierDecoupledCFG", "alpha"): ({**BAD_VALUES, "1, -101": "between -100 and 100"}, [*GOOD_VALUES, "-100"]),
    ("AtelierDecoupledCFG", "beta"): ({**BAD_VALUES, "101": "between -100 and 100"}, GOOD_VALUES),
    ("AtelierDecoupledCFGGuider", "alpha"): ({**BAD_VALUES, "101": "between -100 and 100"}, GOOD_VALUES),
    ("AtelierDecoupledCFGGuider", "beta"): ({**BAD_VALUES, "101": "between -100 and 100"}, GOOD_VALUES),
    ("AtelierStyleLoRATrain", "cancel_prefix"): (
        {" ": "names no file", "../x": "not allowed", "/somewhere/x": "not allowed", "loras/../../x": "not allowed", "a:b": "':' cannot stand", "a\nb": "cannot stand",
         "a" * 300: "kept"},
        ["loras/style_lora_unfinished", "x", "a b/ü", "%year%/x", "a/../b"]),
    ("AtelierMMFSSave", "name"): ({"": "names no file", "../x": "not allowed", "a/": "names no file", "a:b": "':' cannot stand"}, ["mmfs/my_style", "x"]),
    ("AtelierSaveFeatures", "name"): (
        {name: "is no name of a file below" for name in ("", "../x", "/x", "a//b", "a:b", "x\ty")}, ["my style", "watercolors/lake", "ä b/ü"]),
    ("AtelierFastSAMSegment", "size"): ({1000: "multiple of 32", 0: "between 32 and 4096", 4128: "between 32 and 4096"}, [32, 1024, 4096]),
}


@pytest.mark.parametrize("node, name", TEXTS)
def test_what_no_model_understands(node, name):
    """The message says which node, which input, what is wrong and what would be right."""
    bad, good = TEXTS[node, name]
    for value, words in bad.items():
        answer = CHECKING[node](**{name: value})
        assert answer is not True and answer.startswith(f"'{name}' of {NODES[node].SCHEMA.display_name} ") and words in answer, (value, answer)
        assert any(cure in answer for cure in ("Write ", "must lie between", "must be a multiple")), answer
    for value in [*good, None]:  # None: it comes through a link
        assert CHECKING[node](**{name: value}) is True, value


POINTS = '[{"x": 3, "y": 4}]'


@pytest.mark.parametrize("given, words", [
    ({"mode": "lines"}, "It must be one of everything, box, points, text"),
    ({"mode": "box"}, "no box. Connect 'bboxes'"),
    ({"mode": "points"}, "no points. Connect 'positive'"),
    ({"mode": "points", "negative": POINTS}, "no points. Connect 'positive'"),
    ({"mode": "points", "positive": "3, 4"}, "'positive' of FastSAM Mask is not a list of points: '3, 4'. It must look like"),
    ({"mode": "points", "positive": POINTS, "negative": '[{"x": 3}]'}, "'negative' of FastSAM Mask is not a list of points"),
    ({"mode": "points", "positive": '[{"x": -1, "y": 0}]'}, "'positive' of FastSAM Mask has a point at (-1, 0)"),
    ({"mode": "text", "text": "hat"}, "no guidance. Connect CLIP Similarity Loader"),
    ({"mode": "text", "text": " ", "guidance": None}, "no text. Write what the mask should show"),
])
def test_a_mode_of_fastsam_mask_without_its_prompt(given, words):
    """What is linked is None when a run is queued, and what is neither linked nor written is not given."""
    assert words in CHECKING["AtelierFastSAMMask"](**given)


@pytest.mark.parametrize("given", [
    {"mode": "everything", "positive": "junk"}, {"mode": "box", "bboxes": None}, {"mode": "points", "positive": None, "negative": None},
    {"mode": "points", "positive": POINTS}, {"mode": "points", "positive": ""}, {"mode": "text", "guidance": None, "text": None},
    {"mode": "text", "guidance": None, "text": "hat"}, {"mode": None, "text": ""}, {},
])
def test_a_mode_of_fastsam_mask_with_its_prompt(given):
    assert CHECKING["AtelierFastSAMMask"](**given) is True


def test_every_check_has_its_cases():
    named = {(node, name) for node, function in CHECKING.items() for name in inspect.getfullargspec(function).args[1:]}
    assert {(node, name) for node, name in named if node not in ELSEWHERE} == set(TEXTS)


@pytest.mark.parametrize("node", CHECKING)
def test_comfyui_still_checks_the_rest(node):
    """It leaves the range and the choices of an input to the node as soon as validate_inputs names it."""
    spec = inspect.getfullargspec(CHECKING[node])
    inputs = {item.id: item for item in NODES[node].SCHEMA.inputs}
    assert spec.varkw is None and len(spec.defaults) == len(spec.args) - 1
    own = {("AtelierFastSAMSegment", "size"), ("AtelierFastSAMMask", "mode"), ("AtelierDemoPicture", "image")}  # these check range and choices themselves
    for name in spec.args[1:]:
        assert (node, name) in own or not {"min", "max", "options"} & set(inputs[name].as_dict()), name
    assert CHECKING[node](**{name: default(NODES[node], name) for name in spec.args[1:]}) is True


@pytest.mark.parametrize("node, item", NUMBERS, ids=[f"{node}-{item.id}" for node, item in NUMBERS])
def test_numbers_from_a_link_keep_to_the_schema(node, item):
    """ComfyUI has not seen these; nor does it refuse NaN on a widget."""
    needed = {name: None for name in inspect.signature(NODES[node].execute).parameters}
    step = item.step if getattr(item, "step", None) else 1
    for value in (float("nan"), float("inf"), item.min - step, item.max + step):
        with pytest.raises(ValueError, match=rf"'{item.id}' of .* is {str(value).replace('+', '.')}\. It must lie between"):
            NODES[node].execute(**{**{name: default(NODES[node], name) for name in needed}, item.id: value})


def default(node, name):
    return next((getattr(item, "default", None) for item in node.SCHEMA.inputs if item.id == name), None)
