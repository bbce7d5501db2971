"""Feature maps: the tensors between a graph's layers, as further outputs of the same graph."""

import onnx
from onnx import helper


def add_feature_maps(model: onnx.ModelProto) -> list[str]:
    """Make what each layer of an exported model computes an output, behind the ones there are.

    A layer's map is its result after the activation, if it has one: that of each ReLU, each max pool, and
    each convolution without a ReLU. They are those of the folded graph (`export.fold`): a batch norm behind a
    ReLU is in the next convolution, and of two merged convolutions there is one map.

    Args:
        model: float32, from `export.build.build_model`; changed in place.

    Returns:
        The names of the new outputs, float32 (batch, C, H, W) each, in the order of the layers.
    """
    graph = model.graph
    shapes = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    activated = {node.input[0] for node in graph.node if node.op_type == "Relu"}
    names = [
        node.output[0]
        for node in graph.node
        if node.op_type in ("Relu", "MaxPool") or (node.op_type == "Conv" and node.output[0] not in activated)
    ]
    for name in names:
        dims = shapes[name].type.tensor_type.shape.dim
        shape = ["batch", *(dim.dim_value for dim in dims[1:])]
        graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return names
