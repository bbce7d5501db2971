"""Static int8 quantisation of an exported model."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx

from export.build import INPUT
from export.images import to_unit

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
                # The other operators, softmax above all, take no time and would only lose accuracy.
                op_types_to_quantize=["AveragePool", "Conv", "Relu", "MaxPool"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return onnx.load(path)
    finally:
        logger.setLevel(level)
