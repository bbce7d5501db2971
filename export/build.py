"""Folded steps as an ONNX graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.fold import Affine, Convolution, Plain, Step
from recipe.networks import CLASSES, IMAGE_SHAPE, Average, AvgPool, MaxPool, Network, Relu

OPSET, IR_VERSION = 17, 8  # ONNX Runtime 1.12 and later read them
INPUT, LOGITS, PROBABILITIES = "image", "logits", "probabilities"


def build_model(network: Network, steps: Sequence[Step]) -> onnx.ModelProto:
    """A model from ``image``, float32 (batch, 1, 28, 28), to ``logits`` and ``probabilities`` (batch, 10).

    Nodes and their outputs have the layer table's names, so that a viewer shows which layer is where.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name))
        return name

    def node(operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    value = INPUT
    for step in steps:
        match step:
            case Convolution(name, weight, bias, pad, _, depthwise):
                inputs = [constant(f"{name}.weight", weight)]
                if np.any(bias):
                    inputs.append(constant(f"{name}.bias", bias))
                form: dict[str, Any] = {"kernel_shape": weight.shape[2:], "pads": [pad] * 4}
                form |= {"group": len(weight)} if depthwise else {}
                value = node("Conv", name, value, *inputs, **form)
            case Affine(name, scale, shift):
                scale, shift = scale[:, None, None], shift[:, None, None]
                if np.any(scale != 1):
                    value = node("Mul", f"{name}.mul", value, constant(f"{name}.scale", scale))
                if np.all(shift < 0):  # the same bits as adding, which onnx2tf cannot convert
                    value = node("Sub", f"{name}.sub", value, constant(f"{name}.shift", -shift))
                elif np.any(shift):
                    value = node("Add", f"{name}.add", value, constant(f"{name}.shift", shift))
            case Plain(name, Relu()):
                value = node("Relu", name, value)
            case Plain(name, MaxPool()):
                value = node("MaxPool", name, value, kernel_shape=[2, 2], strides=[2, 2])
            case Plain(name, AvgPool()):
                value = node("AveragePool", name, value, kernel_shape=[2, 2], strides=[2, 2])
            case Plain(name, Average()):
                value = node("GlobalAveragePool", name, value)
    node("Flatten", LOGITS, value, axis=1)
    node("Softmax", PROBABILITIES, LOGITS, axis=1)

    image = helper.make_tensor_value_info(
        INPUT,
        TensorProto.FLOAT,
        ["batch", *IMAGE_SHAPE],
        shape_denotation=["DATA_BATCH", "DATA_CHANNEL", "DATA_FEATURE", "DATA_FEATURE"],
    )
    image.type.denotation = "IMAGE"  # onnx/docs/TypeDenotation.md; export.metadata says which kind of image
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", CLASSES])
        for name in (LOGITS, PROBABILITIES)
    ]
    graph = helper.make_graph(nodes, network.name, [image], outputs, weights)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
