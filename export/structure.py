"""Check that a file from anywhere is one that `python -m export` may have written, before it runs."""

from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto

from export.build import INPUT, LOGITS, PROBABILITIES
from recipe.checkpoint import read_at_most
from recipe.console import UserError, reason
from recipe.networks import CLASSES, IMAGE_SHAPE

MAX_BYTES = 64 * 2**20
MAX_ELEMENTS = 2**16  # of one image's tensor between two nodes; ours have 12,544
FLOAT_OPERATORS = {
    "Add", "AveragePool", "Conv", "Flatten", "GlobalAveragePool", "MaxPool", "Mul", "Relu", "Softmax", "Sub"
}  # fmt: skip
OPERATORS = FLOAT_OPERATORS | {"DequantizeLinear", "QuantizeLinear"}  # those two only in int8 files
ATTRIBUTE_FIELDS = {"name", "type", "i", "ints"}  # not a graph, a tensor or a text

Signature = tuple[str, int, tuple[int | str, ...]]
INPUTS: list[Signature] = [(INPUT, TensorProto.FLOAT, ("batch", *IMAGE_SHAPE))]
OUTPUTS: list[Signature] = [(name, TensorProto.FLOAT, ("batch", CLASSES)) for name in (LOGITS, PROBABILITIES)]


def read_model(path: Path) -> tuple[bytes, onnx.ModelProto]:
    """Read a file that `python -m export` may have written.

    Raises:
        UserError: missing, unreadable, truncated, no ONNX model, or one that is not ours.
    """
    try:
        content = read_at_most(path, MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"there is no model {path}; write one with python -m export") from None
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MiB, so it is not one of Lockstep's models")
    try:
        model = onnx.load_model_from_string(content)
    except Exception:  # protobuf's DecodeError, whose module differs between its versions
        model = onnx.ModelProto()
    if not model.graph.node:  # an empty file parses as an empty model
        raise UserError(f"{path} is no ONNX model, or a truncated one; export it again")
    try:
        check_structure(model)
    except UserError as error:
        raise UserError(f"{path}: {error}; export it again") from None
    return content, model


def check_structure(model: onnx.ModelProto) -> None:
    """ONNX's own full check with strict shape inference, and our operators, inputs and outputs.

    Raises:
        UserError: it is not a valid model, refers to other files, or is not one of ours.
    """
    _check_parts(model)
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # its own two, RuntimeError, and UnicodeDecodeError for a name that is no text
        raise UserError(f"the model is not valid: {reason(error)}") from None
    inputs, outputs = ([_signature(v) for v in values] for values in (model.graph.input, model.graph.output))
    if (inputs, outputs[: len(OUTPUTS)]) != (INPUTS, OUTPUTS):  # feature maps may follow
        raise UserError(
            f"the model has other inputs or outputs than {INPUT} {('batch', *IMAGE_SHAPE)}, float32, and "
            f"{LOGITS} and {PROBABILITIES} {('batch', CLASSES)}, float32"
        )
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        if prod(d.dim_value for d in value.type.tensor_type.shape.dim if d.dim_value > 0) > MAX_ELEMENTS:
            raise UserError(f"the model has a tensor {value.name!r} of more than {MAX_ELEMENTS:,} numbers")


def _check_parts(model: onnx.ModelProto) -> None:
    """Refuse what none of our files has, before anything computes with it."""
    graph = model.graph
    unknown = [node.op_type for node in graph.node if node.domain or node.op_type not in OPERATORS]
    if unknown:
        raise UserError(f"the model has the operator {unknown[0]!r}, which no model of Lockstep's has")
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    fields = {field.name for attribute in attributes for field, _ in attribute.ListFields()}
    if fields - ATTRIBUTE_FIELDS or graph.sparse_initializer or model.functions or model.training_info:
        raise UserError("the model has functions or inner graphs, which no model of Lockstep's has")
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise UserError("the model keeps weights in other files")
        if min(tensor.dims, default=1) < 0 or prod(tensor.dims) > model.ByteSize():
            raise UserError(f"the model's tensor {tensor.name!r} says that it is larger than the file")


def _signature(value: onnx.ValueInfoProto) -> Signature:
    """Name, type and shape; the batch may have any symbol."""
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else "batch" for d in tensor.shape.dim)
    return value.name, tensor.elem_type, shape
