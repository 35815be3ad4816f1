"""The face metrics through the real insightface, with tiny generated ONNX models: a red disc is a face."""

import socket

import numpy as np
import pytest
from PIL import Image, ImageDraw

from portrait_atelier.evaluation import faces, weights
from portrait_atelier.evaluation.errors import EvaluationError, MissingWeights, Undefined

onnx = pytest.importorskip("onnx")
pytest.importorskip("insightface")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric looked for the network")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def save(path, nodes, constants, inputs, outputs):
    def value(name, shape):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    constants = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = onnx.helper.make_graph(nodes, "tiny", [value(*inputs)], [value(*output) for output in outputs], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def detector(path):
    """One anchor of stride 16 fires on red; boxes and points are constants around it."""
    points = (np.array([38.3, 51.7, 73.5, 51.5, 56, 71.7, 41.5, 92.4, 70.7, 92.2], np.float32) - 56) / 56 * 6
    node = onnx.helper.make_node
    constants = {"red": np.array([1, -.5, -.5], np.float32).reshape(1, 3, 1, 1)}
    nodes, outputs = [node("Conv", ["input", "red"], ["redness"], kernel_shape=[1, 1])], []
    for part, count, bias in (("score", 1, [-24.]), ("box", 4, [6.] * 4), ("points", 10, points)):
        for stride in (8, 16, 32):
            name = f"{part}{stride}"
            kernel = np.zeros((2 * count, 1, 1, 1), np.float32)
            kernel[0] = 40 if name == "score16" else 0
            constants |= {f"{name}.w": kernel, f"{name}.b": np.tile(np.asarray(bias, np.float32), 2), f"{name}.shape": np.array([-1, count])}
            nodes += [node("AveragePool", ["redness"], [f"{name}.mean"], kernel_shape=[stride] * 2, strides=[stride] * 2),
                      node("Conv", [f"{name}.mean", f"{name}.w", f"{name}.b"], [f"{name}.raw"], kernel_shape=[1, 1])]
            last = f"{name}.raw"
            if part == "score":
                nodes.append(node("Sigmoid", [last], [f"{name}.share"]))
                last = f"{name}.share"
            nodes += [node("Transpose", [last], [f"{name}.last"], perm=[0, 2, 3, 1]), node("Reshape", [f"{name}.last", f"{name}.shape"], [name])]
            outputs.append((name, [f"n{name}", count]))
    save(path, nodes, constants, ("input", [1, 3, "?h", "?w"]), outputs)


def recogniser(path):
    node = onnx.helper.make_node
    constants = {"w": (np.random.default_rng(0).standard_normal((192, 512)) / 14).astype(np.float32)}
    nodes = [node("AveragePool", ["input"], ["mean"], kernel_shape=[14, 14], strides=[14, 14]), node("Flatten", ["mean"], ["flat"]),
             node("Gemm", ["flat", "w"], ["embedding"])]
    save(path, nodes, constants, ("input", ["n", 3, 112, 112]), [("embedding", ["n", 512])])


@pytest.fixture
def tools(tmp_path):
    folder = tmp_path / "insightface" / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    detector(folder / "det.onnx")
    recogniser(folder / "rec.onnx")
    return weights.Tools([tmp_path], "cpu")


def photo(path, colour, at=(256, 256)):
    picture = Image.new("RGB", (512, 512), (128, 128, 128))
    ImageDraw.Draw(picture).ellipse((at[0] - 20, at[1] - 20, at[0] + 20, at[1] + 20), fill=colour)
    picture.save(path)
    return path


def test_identity_and_failures_with_insightface(tmp_path, tools, capsys):
    one, other, none = photo(tmp_path / "1.png", (220, 20, 20)), photo(tmp_path / "2.png", (255, 20, 80), (200, 300)), photo(tmp_path / "3.png", (20, 20, 220))
    identity, fails = faces.Identity(tools), faces.FaceFails(tools)
    assert identity({"generated": one, "identity": one}) == pytest.approx(1, abs=1e-6)
    assert -1 <= identity({"generated": other, "identity": one}) < .99
    assert [fails({"generated": path}) for path in (one, other, none)] == [0, 0, 1]
    with pytest.raises(Undefined):
        identity({"generated": none, "identity": one})
    assert not capsys.readouterr().out  # stdout is for the results


def test_smaller_sizes_are_tried_until_there_is_a_face(tmp_path, tools, monkeypatch):
    detector, tried = tools.faces.analysis.det_model, []
    detect = detector.detect
    def note(bgr, **options):
        tried.append(options.get("input_size") or detector.input_size)
        return detect(bgr, **options)
    monkeypatch.setattr(detector, "detect", note)
    tools.faces.best(photo(tmp_path / "1.png", (220, 20, 20)))
    assert tried == [(640, 640)]
    tools.faces.best(photo(tmp_path / "3.png", (20, 20, 220)))
    assert tried[1:] == [(side, side) for side in (640, 576, 512, 448, 384, 320)]


def test_an_incomplete_pack_is_never_downloaded(tmp_path, tools):
    folder = tmp_path / "insightface" / "models" / "buffalo_l"
    (folder / "rec.onnx").write_bytes(b"junk")
    with pytest.raises(EvaluationError, match="cannot be read as a face pack"):
        faces.Identity(weights.Tools([tmp_path], "cpu"))
    (folder / "rec.onnx").unlink()
    with pytest.raises(MissingWeights, match="holds no detector and recogniser"):
        faces.Identity(weights.Tools([tmp_path], "cpu"))
