"""FastSAM's nodes on a real ONNX Runtime: a generated network that sees colours."""

import importlib.util
import logging
import os
import sys
import types
import weakref

import comfy.model_management
import folder_paths
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from portrait_atelier.host import fastsam
from portrait_atelier.nodes import fastsam_loader
from portrait_atelier.nodes.fastsam_loader import FastSAMLoader
from portrait_atelier.nodes.fastsam_segment import FastSAMSegment
from portrait_atelier.nodes.mask_to_latent_grid import MaskToLatentGrid

from .conftest import picture, select
from .network import ALL, BLUE, GREEN, RED, candidate, write_onnx


def iou(mask, truth):
    return float(((mask > .5) & truth).sum() / ((mask > .5) | truth).sum())


def rectangle(height, width, y1, y2, x1, x2):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- the network -----------------------------------------------------------------------------------------------------------

def disc(height, width, y, x, radius):
    v, u = torch.meshgrid(torch.arange(height) + .5, torch.arange(width) + .5, indexing="ij")
    return (v - y) ** 2 + (u - x) ** 2 < radius ** 2


@pytest.mark.parametrize("height, width, size", [(256, 384, None), (384, 250, None), (333, 500, None), (500, 333, (512, 512)), (201, 320, (352, 320))])
def test_a_disc_is_found_where_it_is(network, height, width, size):
    model = network([candidate((0, 0, 2000, 2000), GREEN)], size=size)
    centroids = []
    for shift in ((0, 0), (5, 7)):
        truth = disc(height, width, height * .45 + shift[0], width * .4 + shift[1], 80)
        image = torch.zeros(1, height, width, 3)
        image[0, ..., GREEN] = truth.float()
        result, everything = FastSAMSegment.execute(model, image, size=512).result
        assert iou(everything[0], truth) > .98 and torch.equal(everything[0] > 0, result[0].masks[0])
        centroids.append(everything[0].nonzero().double().mean(0))
    assert (centroids[1] - centroids[0] - torch.tensor([5., 7.], dtype=torch.float64)).abs().max() < .1


@pytest.mark.parametrize("mode, least", [("image", .97), ("prototype", .85), ("reference", .85)])
@pytest.mark.parametrize("height, width", [(200, 120), (120, 200), (150, 211), (24, 40)])
def test_the_mask_modes_find_colours(network, height, width, mode, least):
    """Red, green and blue are three masks: channels in another order would find others."""
    cuts = {RED: (0, height // 2, 0, width // 2), GREEN: (0, height // 2, width // 2, width), BLUE: (height // 2, height, 0, width // 2)}
    image = picture(height, width, *[(colour, *cut) for colour, cut in cuts.items()])
    model = network([candidate((0, 0, 1000, 1000), colour, score=.9 - .1 * colour) for colour in cuts])
    result, everything = FastSAMSegment.execute(model, image, size=512, iou=1.0, mask_mode=mode).result
    assert everything.shape == (1, height, width)
    assert torch.equal(everything[0] > 0, result[0].masks[0] | result[0].masks[1] | result[0].masks[2])
    for mask, cut in zip(result[0].masks, cuts.values()):
        assert iou(mask, rectangle(height, width, *cut)) > least


@pytest.mark.parametrize("options", [{"transposed": True}, {"swapped": True}, {"dtype": np.float16}, {"size": (128, 192)}, {"batch": "batch"}])
def test_exports_of_every_kind_agree(network, options):
    rows = [candidate((10, 10, 100, 120), RED), candidate((110, 30, 190, 110), BLUE, score=.7)]
    image = picture(128, 192, (RED, 16, 112, 16, 96), (BLUE, 40, 104, 120, 184))
    expected, other = (FastSAMSegment.execute(network(rows, **kind), image, size=192)[0][0] for kind in ({}, options))
    assert torch.equal(other.masks, expected.masks) and torch.allclose(other.boxes, expected.boxes, atol=.1)
    assert torch.allclose(other.scores, expected.scores, atol=1e-3)


def test_three_classes(network):
    rows = [candidate((10, 10, 100, 120), RED, classes=3, score=.2), candidate((110, 30, 190, 110), BLUE, classes=3, score=.3)]
    rows[0][6] = .95
    rows += [candidate((0, 0, 40, 40), classes=3, score=0)] * 50       # rows are told from columns by being fewer
    image = picture(128, 192, (RED, 16, 112, 16, 96), (BLUE, 40, 104, 120, 184))
    result = FastSAMSegment.execute(network(rows), image, size=192)[0][0]
    assert result.scores.tolist() == pytest.approx([.95]) and iou(result.masks[0], rectangle(128, 192, 16, 112, 16, 96)) > .98


def test_a_fixed_model_keeps_its_size(network, caplog):
    model = network([candidate((0, 0, 192, 128), RED)], size=(128, 192))
    image = picture(64, 64, (RED, 0, 32, 0, 64))
    FastSAMSegment.execute(model, image.repeat(2, 1, 1, 1), size=1024)
    assert [text for text in warnings(caplog) if "exported for 192 x 128 pixels; size 1024 is not used" in text] == warnings(caplog) and len(caplog.records) == 1
    caplog.clear()
    FastSAMSegment.execute(model, image, size=192)
    assert not warnings(caplog)


def test_a_batch_is_segmented_one_by_one(network):
    model = network([candidate((0, 0, 96, 96), RED), candidate((0, 0, 96, 96), BLUE, score=.5)])
    images = torch.cat([picture(96, 96, (RED, 0, 48, 0, 96)), picture(96, 96, (BLUE, 0, 96, 0, 40))])
    result, everything = FastSAMSegment.execute(model, images, size=96, iou=1.0).result
    assert len(result) == 2 and everything.shape == (2, 96, 96)
    alone = FastSAMSegment.execute(model, images[1:], size=96, iou=1.0)
    assert torch.equal(result[1].masks, alone[0][0].masks) and torch.equal(everything[1:], alone[1])
    mask, boxes = select(result, mode="box", bboxes=[[{"x": 0, "y": 0, "width": 96, "height": 48}], [{"x": 0, "y": 0, "width": 40, "height": 96}]])
    assert mask.shape == (2, 96, 96) and iou(mask[0], rectangle(96, 96, 0, 48, 0, 96)) > .95 and iou(mask[1], rectangle(96, 96, 0, 96, 0, 40)) > .95
    assert [len(frame) for frame in boxes] == [1, 1]
    rows, boxes = select(result, mode="everything")
    assert len(rows) == sum(map(len, boxes)) == 2


def test_a_list_of_boxes_per_picture(scene):
    twice = scene * 2
    mask, boxes = select(twice, mode="box", bboxes=[[RED_BOX], [BLUE_BOX, GREEN_BOX]])
    assert mask.shape == (2, 128, 192) and near(boxes[0], RED_BOX) and near(boxes[1], BLUE_BOX, GREEN_BOX)
    assert not select(twice, mode="box", bboxes=[[], [BLUE_BOX]])[0][0].any()


def test_alpha_is_left_out(network):
    model = network([candidate((0, 0, 64, 64), RED)])
    image = picture(64, 64, (RED, 0, 32, 0, 64))
    with_alpha = torch.cat([image, torch.rand(1, 64, 64, 1)], -1)
    assert torch.equal(FastSAMSegment.execute(model, image, size=64)[1], FastSAMSegment.execute(model, with_alpha, size=64)[1])


def test_cancel_stops_between_pictures(network, monkeypatch):
    model, calls = network([candidate((0, 0, 64, 64), RED)]), []
    fit = fastsam.preprocess.fit

    def cancel_in_the_first(image, geometry):
        calls.append(1)
        comfy.model_management.interrupt_current_processing(True)
        return fit(image, geometry)

    monkeypatch.setattr(fastsam.preprocess, "fit", cancel_in_the_first)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            FastSAMSegment.execute(model, torch.zeros(3, 64, 64, 3), size=64)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert calls == [1]


# ---- files and the runtime -------------------------------------------------------------------------------------------------

def refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_file(folder):
    assert fastsam.model_names() == []
    combo = FastSAMLoader.GET_SCHEMA().inputs[0]
    assert combo.options == ["(put a FastSAM .onnx into models/fastsam)"] == [fastsam_loader.NOTHING]
    refused(f"no FastSAM model.*in {folder}.*Put a FastSAM .onnx", lambda: FastSAMLoader.execute(fastsam_loader.NOTHING))
    refused("no FastSAM model", lambda: FastSAMLoader.execute("../../outside.onnx"))
    assert FastSAMLoader.fingerprint_inputs(fastsam_loader.NOTHING, "auto") is None


def test_a_pt_file_is_never_opened(folder, monkeypatch):
    path = os.path.join(folder, "FastSAM-s.pt")
    with open(path, "wb") as file:
        file.write(b"not even a pickle")
    try:
        assert fastsam.model_names() == ["FastSAM-s.pt"]
        monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("opened"))
        refused("'FastSAM-s.pt' is no ONNX file: export to ONNX first", lambda: FastSAMLoader.execute("FastSAM-s.pt"))
    finally:
        os.remove(path)


def test_a_damaged_file(folder):
    path = os.path.join(folder, "damaged.onnx")
    with open(path, "wb") as file:
        file.write(b"junk" * 100)
    try:
        refused("damaged.onnx cannot be opened as an ONNX model: .*export the file again", lambda: FastSAMLoader.execute("damaged.onnx", "cpu"))
    finally:
        os.remove(path)


def test_a_model_is_opened_once_until_its_file_changes(network, folder):
    model = network([candidate((0, 0, 64, 64), RED)])
    assert fastsam.load(model.name, "cpu") is model
    path, before = os.path.join(folder, model.name), FastSAMLoader.fingerprint_inputs(model.name, "cpu")
    write_onnx(path, [candidate((0, 0, 64, 64), RED), candidate((0, 0, 30, 30), BLUE)])
    os.utime(path, ns=(before + 10**9, before + 10**9))
    assert fastsam.load(model.name, "cpu") is not model and FastSAMLoader.fingerprint_inputs(model.name, "cpu") == before + 10**9
    assert len(FastSAMSegment.execute(fastsam.load(model.name, "cpu"), torch.ones(1, 64, 64, 3), size=64)[0][0].masks) == 2


def test_other_networks_are_refused(network):
    refused("no FastSAM.*one picture.*batch 1", lambda: network([candidate((0, 0, 9, 9), RED)], batch=4))
    refused("no FastSAM", lambda: network([candidate((0, 0, 9, 9), RED)], size=(100, 100)))
    refused("no FastSAM", lambda: network([candidate((0, 0, 9, 9), RED)], channels=1))
    image = torch.zeros(1, 64, 64, 3)
    baked = np.zeros((300, 38)).tolist()
    refused(r"suppression is built into it. Its outputs: 'output0' \[1, 300, 38\], 'output1' \[1, 32, 16, 16\]",
            lambda: FastSAMSegment.execute(network(baked, transposed=True), image, size=64))
    refused(r"30 rows are too few", lambda: FastSAMSegment.execute(network([[0.] * 30] * 50), image, size=64))
    refused("NaN or infinite", lambda: FastSAMSegment.execute(network([candidate((0, 0, np.nan, 9), RED)]), image, size=64))


@pytest.fixture
def bomb(folder, request):
    """bomb(where, count, declared): a network of less than a kilobyte, of which one tensor is [1, 37, count]."""
    path = os.path.join(folder, f"bomb{os.getpid()}.onnx")

    def build(where, count, declared=("batch", "rows", "places"), size=("height", "width")):
        def constant(name, value):
            return numpy_helper.from_array(np.array(value, np.int64), name)

        # The width comes from the picture, so that no reader of the file can know it.
        nodes = [helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0), helper.make_node("Cast", ["mean"], ["whole"], to=TensorProto.INT64),
                 helper.make_node("Add", ["whole", "count"], ["width"]), helper.make_node("Concat", ["rows", "width"], ["wide"], axis=0),
                 helper.make_node("Expand", ["mean", "wide"], ["huge"]),
                 helper.make_node("AveragePool", ["images"], ["small"], kernel_shape=[4, 4], strides=[4, 4])]
        if where == "folded":  # a constant, which a runtime may write out when it opens the file
            nodes[4] = helper.make_node("Expand", ["count", "wide"], ["huge_count"])
            nodes[3] = helper.make_node("Concat", ["rows", "count"], ["wide"], axis=0)
            nodes.insert(5, helper.make_node("Cast", ["huge_count"], ["huge"], to=TensorProto.FLOAT))
        nodes += [helper.make_node("Identity", ["huge"], ["table"])] if where == "output" else [
            helper.make_node("ReduceMax", ["huge"], ["most"], keepdims=0), helper.make_node("Expand", ["most", "narrow"], ["table"])]
        floats = TensorProto.FLOAT
        graph = helper.make_graph(
            nodes, "bomb", [helper.make_tensor_value_info("images", floats, [1, 3, *size])],
            [helper.make_tensor_value_info("table", floats, declared), helper.make_tensor_value_info("small", floats, [1, 3, "rows4", "columns4"])],
            [constant("rows", [1, 37]), constant("count", [count]), constant("narrow", [1, 8, 5])][:2 if where == "output" else 3])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        onnx.save(model, path)
        assert os.path.getsize(path) < 1024
        return FastSAMLoader.execute(os.path.basename(path), "cpu")[0]

    yield build
    os.remove(path)


def test_small_files_that_ask_for_much(bomb):
    """Ten gigabytes in an output or on the way there; nothing of it is ever taken."""
    resource = pytest.importorskip("resource")
    before, image = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, torch.zeros(1, 64, 64, 3)
    refused(f"bomb{os.getpid()}.onnx': The ONNX model is no FastSAM: its output 'table' of shape", lambda: bomb("output", 2**26, (1, 37, 2**26)))
    refused(f"bomb{os.getpid()}.onnx': The ONNX model takes 'images' of 65536 x 65536 pixels", lambda: bomb("output", 8, size=(65536, 65536)))
    for where in ("output", "middle"):
        refused(rf"'bomb{os.getpid()}.onnx' failed on an input of 64 x 64: ", lambda: FastSAMSegment.execute(bomb(where, 2**26), image, size=64))
    bomb("folded", 2**21)
    refused("no FastSAM: its output 'table' of shape .1, 37, 65536. holds", lambda: FastSAMSegment.execute(bomb("output", 2**16), image, size=64))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19, "half a gigabyte, in units of a kilobyte"


def test_a_size_that_the_network_cannot_take(network):
    """A model whose height alone is fixed: the runtime's own words, and what to do."""
    model = network([candidate((0, 0, 9, 9), RED)], size=(128, "width"))
    assert model.size is None
    refused("failed on an input of 64 x 64: .*Choose another size", lambda: FastSAMSegment.execute(model, torch.zeros(1, 64, 64, 3), size=64))


def test_without_onnxruntime(network, folder, monkeypatch):
    name = network([candidate((0, 0, 9, 9), RED)]).name  # and nobody uses it
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError) as missing:
        FastSAMLoader.execute(name)
    assert str(missing.value) == (
        f'FastSAM needs onnxruntime, which this Python does not have. Install exactly one: "{sys.executable} -m pip install onnxruntime" (CPU) or '
        f'"{sys.executable} -m pip install onnxruntime-gpu" (NVIDIA). Then restart ComfyUI. Without it, connect any other MASK, for example from '
        "SAM3 Detect.")
    spec = importlib.util.spec_from_file_location("portrait_atelier.host.fastsam_again", fastsam.__file__)
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, again)
    spec.loader.exec_module(again)
    assert again.model_names() == [name]              # the pack imports, and its list works
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(ValueError) as broken:
        FastSAMLoader.execute(name)
    assert str(broken.value) == (
        "onnxruntime is installed but unusable (no InferenceSession). Usually one of two variants was removed. Run "
        f'"{sys.executable} -m pip uninstall -y onnxruntime onnxruntime-gpu", install exactly one again, then restart ComfyUI.')


class Runtime:
    """onnxruntime as it is on machines that the tests do not have. opens: what becomes of a session that asks for CUDA."""

    def __init__(self, real, listed, opens):
        self.real, self.listed, self.opens, self.asked = real, listed, opens, []

    def get_available_providers(self):
        return self.listed

    def InferenceSession(self, path, options, providers):
        self.asked.append(providers)
        if providers[0] == fastsam.CUDA and self.opens == "raises":
            raise RuntimeError("libcublas is missing\nmore")
        session = self.real.InferenceSession(path, options, providers=[fastsam.CPU])
        if providers[0] == fastsam.CUDA and self.opens == "opens":
            session.get_providers = lambda: [fastsam.CUDA, fastsam.CPU]
        return session


@pytest.mark.parametrize("provider, listed, opens, warning, asked", [
    ("auto", [fastsam.CUDA, fastsam.CPU], "opens", None, 1), ("auto", [fastsam.CUDA, fastsam.CPU], "raises", "CUDA did not open: libcublas is missing.", 2),
    ("auto", [fastsam.CUDA, fastsam.CPU], "falls back", "CUDA did not open.", 2), ("auto", [fastsam.CPU], None, "has no CUDA", 1),
    ("cpu", [fastsam.CUDA, fastsam.CPU], "opens", None, 1),
])
def test_providers(network, monkeypatch, caplog, provider, listed, opens, warning, asked):
    import onnxruntime
    name, fake = network([candidate((0, 0, 9, 9), RED)]).name, Runtime(onnxruntime, listed, opens)
    monkeypatch.setattr(fastsam, "runtime", lambda: fake)
    first = fastsam.load(name, provider)
    assert fastsam.load(name, provider) is first, "one that is in use"
    assert len(fake.asked) == asked and fake.asked[-1][-1] == fastsam.CPU and (fake.asked[0][0] == fastsam.CUDA) == (provider == "auto" and fastsam.CUDA in listed)
    assert len(warnings(caplog)) == (warning is not None) and (warning is None or warning in warnings(caplog)[0])


def test_a_session_is_closed_for_another_and_for_memory_and_opened_again(network):
    image = torch.zeros(1, 64, 64, 3)
    image[..., :32, RED] = 1
    first, second = (network([candidate((0, 0, 60, 60), colour)]) for colour in (RED, GREEN))
    assert first.session.made is None, "closed when the second was opened"
    expected = FastSAMSegment.execute(first, image, size=64)[0][0].masks
    session = weakref.ref(first.session.made)
    assert session() is not None and second.session.made is None
    comfy.model_management.unload_all_models()
    assert session() is None, "nobody keeps it"
    assert torch.equal(FastSAMSegment.execute(first, image, size=64)[0][0].masks, expected) and expected.any()
    session = weakref.ref(first.session.made)
    del first
    assert session() is None


# ---- FastSAM Mask ----------------------------------------------------------------------------------------------------------

RED_BOX, GREEN_BOX, BLUE_BOX = ({"x": x, "y": y, "width": w, "height": h} for x, y, w, h in ((16, 16, 80, 96), (32, 32, 32, 32), (120, 40, 64, 64)))


def near(boxes, *expected):
    return len(boxes) == len(expected) and all(abs(a[key] - b[key]) <= 2 for a, b in zip(boxes, expected) for key in b)


def test_everything(scene):
    mask, boxes = select(scene)
    assert mask.shape == (4, 128, 192) and mask.dtype == torch.float32 and set(mask.unique().tolist()) == {0., 1.}
    assert near(boxes[0], {"x": 0, "y": 0, "width": 192, "height": 128}, RED_BOX, BLUE_BOX, GREEN_BOX)
    assert len(select(scene, min_area=2000)[0]) == 3 and near(select(scene, min_area=5000)[1][0], {"x": 0, "y": 0, "width": 192, "height": 128}, RED_BOX)
    assert len(select(scene, dedupe=.2)[0]) == 3       # red is 0.3 of the picture; blue is 0.17, green 0.04, and 0.13 of red
    assert len(select(scene, dedupe=.15)[0]) == 2
    inverted = select(scene, min_area=2000, invert=True)[0]
    assert inverted.shape == (1, 128, 192) and not inverted.any()


def test_boxes(scene):
    mask, boxes = select(scene, mode="box", bboxes={"x": 30, "y": 30, "width": 36, "height": 36})
    assert mask.shape == (1, 128, 192) and iou(mask[0], rectangle(128, 192, 32, 64, 32, 64)) > .9 and near(boxes[0], GREEN_BOX)
    mask, boxes = select(scene, mode="box", bboxes=[RED_BOX, BLUE_BOX, RED_BOX])
    truth = rectangle(128, 192, 16, 112, 16, 96) | rectangle(128, 192, 40, 104, 120, 184)
    assert iou(mask[0], truth) > .98 and near(boxes[0], RED_BOX, BLUE_BOX)
    inverted = select(scene, mode="box", bboxes=[RED_BOX, BLUE_BOX], invert=True)
    assert torch.equal(inverted[0], 1 - mask) and inverted[1] == boxes
    assert near(select(scene, mode="box", bboxes=GREEN_BOX, min_area=2000)[1][0], RED_BOX)     # green is filtered: the next best


def test_points(scene):
    red, green, blue = '[{"x": 20, "y": 100}]', '[{"x": 48, "y": 48}]', '[{"x": 150, "y": 60}]'
    mask, boxes = select(scene, mode="points", positive=red, min_area=10)
    assert mask.all() and len(boxes[0]) == 1          # the smallest mask is red, but the whole picture has the point too
    mask, boxes = select(scene, mode="points", positive=green, negative=blue)
    assert iou(mask[0], rectangle(128, 192, 16, 112, 16, 96)) > .97 and near(boxes[0], RED_BOX)
    mask, _ = select(scene, mode="points", positive=red, negative=green, min_area=0)
    assert not mask.any()         # both hold for red and for all; a negative point wins within one mask
    mask, _ = select(scene, mode="points", positive=red, negative=blue, point_rule="subtract")
    assert not mask.any()         # the whole picture is taken away


class Colours:
    """A stub of CLIP: a picture's features are the mean colour of what is not white; 'red', 'green', 'blue' are its words."""

    def __init__(self):
        self.seen = []

    def image_features(self, images):
        self.seen = [tuple(image.shape) for image in images]
        return torch.stack([image[(image < 1).any(-1)].mean(0) if (image < 1).any() else torch.ones(3) for image in images])

    def text_features(self, texts):
        return torch.stack([torch.eye(3)[["red", "green", "blue"].index(text)] for text in texts])


def test_words(scene):
    clip = Colours()
    mask, boxes = select(scene, mode="text", guidance=clip, text="blue")
    assert near(boxes[0], BLUE_BOX) and mask.shape == (1, 128, 192) and iou(mask[0], rectangle(128, 192, 40, 104, 120, 184)) > .98
    assert len(clip.seen) == 4 and all(height == width for height, width, _ in clip.seen)
    assert near(select(scene, mode="text", guidance=clip, text="green")[1][0], GREEN_BOX)
    both = select(scene, mode="text", guidance=clip, text="red", pick="top k", amount=2)[1][0]
    assert len(both) == 2 and near(both[:1], RED_BOX)
    assert len(select(scene, mode="text", guidance=clip, text="red", pick="threshold", amount=0)[1][0]) == 4
    assert near(select(scene, mode="text", guidance=clip, text="red", pick="threshold", amount=1)[1][0], RED_BOX)
    assert near(select(scene, mode="text", guidance=clip, text="green", min_area=2000)[1][0], RED_BOX)
    select(scene, mode="text", guidance=clip, text="blue", text_crop="reference")
    assert clip.seen == [(128, 192, 3)] * 4


def test_words_ignore_specks(network):
    """Masks of at most 100 pixels have nothing to show to CLIP."""
    image = picture(96, 96, (RED, 8, 18, 8, 18), (BLUE, 40, 80, 40, 80))
    model = network([candidate((8, 8, 18, 18), ALL), candidate((36, 36, 84, 84), BLUE, score=.8)])
    result, clip = FastSAMSegment.execute(model, image, size=96)[0], Colours()
    # the corner snaps to the border: 18 x 18 pixels
    assert int(result[0].masks[0].sum()) == 324
    select(result, mode="text", guidance=clip, text="red", min_area=200)
    assert len(clip.seen) == 2
    small = FastSAMSegment.execute(network([candidate((40, 40, 50, 50), ALL), candidate((36, 36, 84, 84), BLUE, score=.8)]), image, size=96)[0]
    assert int(small[0].masks[0].sum()) == 100
    select(small, mode="text", guidance=clip, text="red")
    assert len(clip.seen) == 1


def test_nothing_found_is_black_and_says_so(network, caplog):
    model = network([candidate((0, 0, 64, 64), RED, score=.37)])
    result, everything = FastSAMSegment.execute(model, torch.zeros(1, 64, 80, 3), size=64).result
    assert everything.shape == (1, 64, 80) and not everything.any() and "nothing above conf 0.4 in picture 1; the best score is 0.370" in warnings(caplog)[0]
    for options in ({}, {"mode": "box", "bboxes": RED_BOX | {"width": 4}}, {"mode": "points", "positive": '[{"x": 1, "y": 1}]'},
                    {"mode": "text", "guidance": Colours(), "text": "red"}):
        caplog.clear()
        mask, boxes = select(result, **options)
        assert mask.shape == (1, 64, 80) and not mask.any() and boxes == [[]] and "chose no segment of picture 1 (0 found" in warnings(caplog)[0]
        assert select(result, invert=True, **options)[0].all()


def test_prompts_that_are_missing(scene):
    refused("mode box has no box. Connect 'bboxes'", lambda: select(scene, mode="box"))
    refused("mode points has no points. Connect 'positive'", lambda: select(scene, mode="points", negative="[]"))
    refused("mode text has no guidance. Connect CLIP Similarity Loader", lambda: select(scene, mode="text", text="red"))
    refused("mode text has no text. Write", lambda: select(scene, mode="text", text="  ", guidance=Colours()))
    refused("'amount' of FastSAM Mask is 0.5.*between 1", lambda: select(scene, mode="text", text="red", guidance=Colours(), pick="top k", amount=.5))
    refused("'amount' of FastSAM Mask is 2", lambda: select(scene, mode="text", text="red", guidance=Colours(), pick="threshold", amount=2.))
    refused("'amount'.*nan", lambda: select(scene, mode="text", text="red", guidance=Colours(), pick="threshold", amount=float("nan")))
    refused("'dedupe'.*nan", lambda: select(scene, dedupe=float("nan")))
    refused("outside the picture of 192 x 128", lambda: select(scene, mode="points", positive='[{"x": 192, "y": 4}]'))
    refused("not a list of points: 'oops'.*must look like", lambda: select(scene, mode="points", positive="oops"))
    refused("box without area", lambda: select(scene, mode="box", bboxes=RED_BOX | {"width": 0}))


def test_numbers_that_make_no_sense(network):
    model, image = network([candidate((0, 0, 64, 64), RED)]), torch.zeros(1, 64, 64, 3)
    for name, value in (("conf", float("nan")), ("iou", -.1), ("max_det", 0), ("size", 8192)):
        refused(f"'{name}' of FastSAM Segment is {value}", lambda: FastSAMSegment.execute(model, image, **{name: value}))
    refused("'size' of FastSAM Segment is 100. It must be a multiple of 32, for example 96", lambda: FastSAMSegment.execute(model, image, size=100))
    refused("must hold RGB pictures", lambda: FastSAMSegment.execute(model, image[..., :1]))
    refused("without NaN", lambda: FastSAMSegment.execute(model, image / 0))


# ---- Mask to Latent Grid ---------------------------------------------------------------------------------------------------

def on_grid(mask, height, width, **options):
    return MaskToLatentGrid.execute(mask, {"samples": torch.zeros(1, 4, height, width)}, **options)[0]


def test_the_latent_grid_holds_shares_of_area(caplog):
    mask = torch.rand(1, 64, 96, generator=torch.Generator().manual_seed(0))
    grid = on_grid(mask, 8, 12)
    expected = mask[0].double().reshape(8, 8, 12, 8).mean((1, 3))
    assert grid.shape == (1, 8, 12) and grid.dtype == torch.float32 and torch.allclose(grid[0].double(), expected, atol=1e-6)
    assert float(grid.mean()) == pytest.approx(float(mask.mean()), abs=1e-6)
    for value in (0., .3, 1.):
        assert torch.allclose(on_grid(torch.full((1, 62, 93), value), 8, 12), torch.full((1, 8, 12), value), atol=1e-6)
    part = torch.zeros(1, 64, 64)
    part[0, :3, :8] = 1
    assert float(on_grid(part, 8, 8)[0, 0, 0]) == pytest.approx(3 / 8)
    assert not warnings(caplog)


def test_regions_that_a_latent_cannot_show(caplog):
    speck = torch.zeros(1, 64, 64)
    speck[0, 4, 4:7] = 1
    assert 0 < float(on_grid(speck, 8, 8).max()) < .05 and "region is too small for this latent" in warnings(caplog)[0]
    caplog.clear()
    assert float(on_grid(speck, 8, 8, grow=2).max()) > .05 and not on_grid(speck * 0, 8, 8).any() and not warnings(caplog)


def test_rows_are_united_or_chosen():
    rows = torch.zeros(2, 64, 64)
    rows[0, :, :32], rows[1, :32] = 1, 1
    assert on_grid(rows, 8, 8).sum() == 48 and on_grid(rows, 8, 8, row=1)[0].sum(1).tolist() == [8] * 4 + [0] * 4
    refused("'row' of Mask to Latent Grid is 2, but the mask has 2 rows: 0 to 1", lambda: on_grid(rows, 8, 8, row=2))
    refused("'mask' of Mask to Latent Grid holds no mask", lambda: on_grid(rows[:0], 8, 8))
    refused("'mask' of Mask to Latent Grid is 64 x 64, another shape", lambda: on_grid(rows, 8, 12))
    soft = on_grid(rows, 8, 8, row=1, feather=8)[0, :, 0]
    assert soft[0] == 1 and soft[7] == 0 and .5 < soft[3] < 1 and 0 < soft[4] < .5


def test_the_folder_is_one_of_comfyuis(folder):
    assert folder == os.path.join(folder_paths.models_dir, "fastsam")
