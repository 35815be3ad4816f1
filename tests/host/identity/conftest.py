"""Generated face networks that the real insightface runs, and pictures they understand: a face is a red disc."""

import folder_paths
import numpy as np
import pytest
import torch
from onnx import TensorProto, checker, helper, numpy_helper, save

from portrait_atelier.nodes.face_analysis_loader import FaceAnalysisLoader
from portrait_atelier.nodes.face_identity_encode import FaceIdentityEncode

# Where the points of a face lie in a crop of 112: what aligning must bring them to.
POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
BOX = 2  # half a box, in cells of its stride: the points fill it as they fill the crop


class Graph:
    """A few lines to put an ONNX graph together."""

    def __init__(self):
        self.nodes, self.weights, self.outputs = [], [], []

    def add(self, kind, *inputs, **options):
        name = f"n{len(self.nodes)}"
        names = []
        for item in inputs:
            if not isinstance(item, str):
                self.weights.append(numpy_helper.from_array(np.asarray(item), f"w{len(self.weights)}"))
                item = self.weights[-1].name
            names.append(item)
        self.nodes.append(helper.make_node(kind, names, [name], **options))
        return name

    def output(self, name, *shape):
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def save(self, path, *shape):
        picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "tiny", [picture], self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        checker.check_model(model)
        save(model, str(path))


def save_detector(path, size=("height", "width")):
    """An SCRFD in its signature: nine outputs, scores, boxes and points at strides 8, 16 and 32, two anchors each.

    A cell is a face where its middle is red and its surroundings, four times as wide, are not. Discs of 16 to 40 pixels are
    found at stride 8 and of 70 to 150 at stride 32; larger ones only when the picture is shrunk further.
    """
    graph = Graph()
    red = graph.add("Conv", "picture", np.array([0.5, -0.25, -0.25], np.float32).reshape(1, 3, 1, 1))
    cells = graph.add("AveragePool", red, kernel_shape=[8, 8], strides=[8, 8])
    results = {1: [], 4: [], 10: []}
    for stride in (8, 16, 32):
        def mean(width):  # around the anchor, which is the cell's corner
            size, step = width // 8, stride // 8
            return graph.add("AveragePool", cells, kernel_shape=[size] * 2, strides=[step] * 2, count_include_pad=1,
                             pads=[size // 2] * 2 + [size // 2 - step] * 2)

        contrast = graph.add("Sub", mean(2 * stride), mean(8 * stride))
        gain = 0.0 if stride == 16 else 40.0
        score = graph.add("Sigmoid", graph.add("Conv", contrast, np.array([gain, 0], np.float32).reshape(2, 1, 1, 1),
                                               np.array([-0.7 * gain or -20, -20], np.float32)))
        offsets = (POINTS / 56 - 1) * BOX
        for width, values in ((1, None), (4, np.full(4, BOX)), (10, offsets.flatten())):
            found = score
            if values is not None:  # the same everywhere
                found = graph.add("Conv", contrast, np.zeros((2 * width, 1, 1, 1), np.float32), np.tile(values, 2).astype(np.float32))
            rows = graph.add("Reshape", graph.add("Transpose", found, perm=[0, 2, 3, 1]), np.array([-1, width], np.int64))
            results[width].append(rows)
    for width, names in results.items():
        for name in names:
            graph.output(name, None, width)
    graph.save(path, 1, 3, *size)


def save_recogniser(path):
    """An ArcFace in its signature, 112 x 112 to 512 values: an 8 x 8 thumbnail times a fixed random matrix."""
    graph = Graph()
    matrix = np.random.default_rng(0).standard_normal((192, 512)).astype(np.float32)
    thumbnail = graph.add("AveragePool", "picture", kernel_shape=[14, 14], strides=[14, 14])
    graph.output(graph.add("Gemm", graph.add("Flatten", thumbnail), matrix), None, 512)
    graph.save(path, None, 3, 112, 112)


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """{file name: bytes} of a whole face pack."""
    folder = tmp_path_factory.mktemp("networks")
    save_detector(folder / "det.onnx")
    save_recogniser(folder / "rec.onnx")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Empty models/insightface and models/ipadapter of this test alone."""
    for name in ("insightface", "ipadapter"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], set()))
    return tmp_path


def unpack(folder, networks):
    folder.mkdir(parents=True)
    for name, data in networks.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def put_pack(folders, networks):
    """Writes a face pack below models/insightface."""
    return lambda name="models/tiny", files=networks: unpack(folders / "insightface" / name, files)


@pytest.fixture(scope="session")
def analysis(tmp_path_factory, networks):
    """FACE_ANALYSIS of Face Analysis Loader on the generated pack."""
    root = tmp_path_factory.mktemp("models")
    unpack(root / "models" / "tiny", networks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(folder_paths.folder_names_and_paths, "insightface", ([str(root)], set()))
        return FaceAnalysisLoader.execute("models/tiny", "CPU")[0]


def draw(faces, height=320, width=320, seed=0):
    """A grey ComfyUI IMAGE [1, height, width, 3] with red discs (x, y, diameter[, person]): people differ in shades."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = torch.full((height, width, 3), 0.4)
    for left, top, diameter, *person in faces:
        inside = (x - left) ** 2 + (y - top) ** 2 <= diameter**2 / 4
        angle = torch.atan2((y - top).float(), (x - left).float())
        shade = 0.9 + 0.1 * torch.sin((person[0] if person else 0) + 3 * angle)
        picture[inside] = torch.stack([shade, 0 * shade, 0 * shade], -1)[inside]
    return picture[None]


@pytest.fixture(scope="session")
def photo():
    return draw


@pytest.fixture(scope="session", name="save_detector")
def detector_writer():
    return save_detector


@pytest.fixture(scope="session")
def encode(analysis):
    """Face Identity Encode: (identity, crop, found)."""
    return lambda image, **options: FaceIdentityEncode.execute(analysis, image, **options).result
