"""Static int8 quantisation of an exported model."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from export.build import INPUT
from export.images import to_unit
from export.maps import add_feature_maps

CALIBRATION_IMAGES = 1_000
BATCH = 100
OPSET, IR_VERSION = 19, 9  # ONNX Runtime 1.15; onnx's ReferenceEvaluator refuses int8 in older opsets


def quantize(model: onnx.ModelProto, train_images: np.ndarray) -> onnx.ModelProto:
    """An int8 model in QDQ form: weights per channel and symmetric, activations per tensor.

    Args:
        model: float32, from `export.build.build_model`. Its operators are the same in both opsets.
        train_images: uint8 (M, 28, 28); evenly spaced ones among them decide the activations' ranges.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    indices = np.linspace(0, len(train_images) - 1, CALIBRATION_IMAGES).astype(int)
    images = to_unit(train_images[indices])

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(np.split(images, range(BATCH, len(images), BATCH)))

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    newer = onnx.ModelProto.FromString(model.SerializeToString())
    _balance(newer, images)
    newer.opset_import[0].version, newer.ir_version = OPSET, IR_VERSION
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a shape inference that `model` has no need of
    try:
        with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
            path = Path(folder) / "int8.onnx"
            quantize_static(
                newer,
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                # The other operators, softmax above all, take no time and would only lose accuracy. The first
                # convolution, of one channel, takes ONNX Runtime three times as long in int8.
                op_types_to_quantize=["AveragePool", "Conv", "Relu", "MaxPool"],
                nodes_to_exclude=[next(node.name for node in newer.graph.node if node.op_type == "Conv")],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return onnx.load(path)
    finally:
        logger.setLevel(level)


def _balance(model: onnx.ModelProto, images: np.ndarray) -> None:
    """Scale the channels between two convolutions, in place, so that all need the same range.

    The activations of all channels share one range. A channel that is small everywhere and has large weights
    in the next convolution, as one has whose batch norm divides by little, loses its digits in it. What is
    between two convolutions commutes with a positive factor per channel, so half of the ratio, in logarithms,
    can be moved from the weights into the activations: SmoothQuant (Xiao et al., 2023) with alpha 0.5.
    """
    import onnxruntime

    observed = onnx.ModelProto.FromString(model.SerializeToString())
    names = add_feature_maps(observed)
    session = onnxruntime.InferenceSession(observed.SerializeToString(), providers=["CPUExecutionProvider"])
    maps = session.run(names, {INPUT: images})
    largest = {name: np.abs(np.asarray(x)).max((0, 2, 3)) for name, x in zip(names, maps, strict=True)}
    values = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    before: onnx.NodeProto | None = None
    between = np.empty(0)
    for node in model.graph.node:
        if node.op_type == "Conv":
            kernel = values[node.input[1]]
            if before is not None:
                depthwise = any(attribute.name == "group" for attribute in node.attribute)
                by_input = kernel if depthwise else kernel.swapaxes(0, 1)
                weights = np.abs(by_input).max((1, 2, 3))
                used = (weights > 0) & (between > 0)
                factor = np.sqrt(np.divide(weights, between, out=np.ones_like(weights), where=used))
                by_input /= factor[:, None, None, None]
                for name in before.input[1:]:  # kernel and, if it has one, bias
                    values[name] *= factor.reshape(-1, *[1] * (values[name].ndim - 1))
            before = node
        elif node.op_type not in ("Relu", "MaxPool", "AveragePool", "GlobalAveragePool"):
            before = None
        between = largest.get(node.output[0], between)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
