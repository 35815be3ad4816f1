"""An ONNX network with FastSAM's inputs and outputs, made of numbers instead of training: it sees pure colours."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

P = 32
RED, GREEN, BLUE, ALL = range(4)     # prototypes 8 r - 4, 8 g - 4, 8 b - 4 and 4: positive where the colour is, everywhere


def candidate(box, *prototypes, score=.9, classes=1):
    """A row of the table: corners in input pixels, the prototypes that it adds up."""
    x1, y1, x2, y2 = box
    coefficients = np.zeros(P)
    coefficients[list(prototypes)] = 1
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, *[score] + [0.] * (classes - 1), *coefficients]


def write_onnx(path, rows, size=None, dtype=np.float32, transposed=False, swapped=False, extra=(), batch=1, channels=3):
    """AveragePool 4 x 4 and a 1 x 1 convolution make the prototypes; the table is constant plus 0 times the picture."""
    kind = TensorProto.FLOAT16 if dtype == np.float16 else TensorProto.FLOAT
    table = np.asarray(rows, dtype)[None]
    table = table if transposed else table.transpose(0, 2, 1)
    weight, bias = np.zeros((P, channels, 1, 1), dtype), np.zeros(P, dtype)
    for colour in range(3):
        weight[colour, colour % channels], bias[colour] = 8, -4
    bias[ALL] = 4
    height, width = size or ("height", "width")
    boxes, masks = ("output1", "output0") if swapped else ("output0", "output1")
    nodes = [helper.make_node("AveragePool", ["images"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
             helper.make_node("Conv", ["small", "weight", "bias"], [masks]),
             helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
             helper.make_node("ReduceMean", ["mean"], ["one"], axes=[1, 2], keepdims=0),
             helper.make_node("Reshape", ["one", "ones"], ["flat"]),
             helper.make_node("Mul", ["flat", "zero"], ["nothing"]),
             helper.make_node("Add", ["table", "nothing"], [boxes])]
    outputs = [helper.make_tensor_value_info(boxes, kind, list(table.shape)),
               helper.make_tensor_value_info(masks, kind, [1, P, "rows", "columns"])]
    for name, shape in extra:
        nodes.append(helper.make_node("Identity", [f"{name}_value"], [name]))
        outputs.append(helper.make_tensor_value_info(name, kind, shape))
    if swapped:
        outputs.reverse()
    constants = {"weight": weight, "bias": bias, "zero": np.zeros(1, dtype), "table": table, "ones": np.array([1, 1, 1], np.int64),
                 **{f"{name}_value": np.zeros(shape, dtype) for name, shape in extra}}
    graph = helper.make_graph(nodes, "tiny", [helper.make_tensor_value_info("images", kind, [batch, channels, height, width])], outputs,
                              [numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, path)
