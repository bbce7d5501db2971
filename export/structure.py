"""Check that a file from anywhere is one that `python -m export` may have written, before it runs."""

from pathlib import Path

import onnx
from onnx import TensorProto

from export import build, quantize
from export.build import INPUT, LOGITS, PROBABILITIES
from recipe.checkpoint import read_at_most
from recipe.console import UserError, reason
from recipe.networks import CLASSES, IMAGE_SHAPE

MAX_BYTES = 64 * 2**20
OPSETS = (build.OPSET, quantize.OPSET)

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
    except OSError as error:
        raise UserError(
            f"cannot read the model {path}: {error.strerror or error}; write one with python -m export"
        ) from None
    try:
        model = onnx.load_model_from_string(content[:MAX_BYTES])
        check_structure(model)
    except Exception as error:  # protobuf's DecodeError, whose module differs between its versions
        raise UserError(f"{path} is not one of Lockstep's ({reason(error)}); export it again") from None
    return content, model


def check_structure(model: onnx.ModelProto) -> None:
    """Run ONNX's own full check; compare operator set, inputs and outputs with ours.

    Raises:
        UserError: it is not a valid model, keeps weights in other files, or is not one of ours.
    """
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise UserError("the model keeps weights in other files")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # its own two, RuntimeError, and UnicodeDecodeError for a name that is no text
        raise UserError(f"the model is not valid: {reason(error)}") from None
    opsets = [(opset.domain, opset.version) for opset in model.opset_import]
    if opsets not in [[("", version)] for version in OPSETS]:
        raise UserError(f"the model has the operator sets {opsets}, not one of ONNX's {OPSETS}")
    inputs, outputs = ([_signature(v) for v in values] for values in (model.graph.input, model.graph.output))
    if (inputs, outputs[: len(OUTPUTS)]) != (INPUTS, OUTPUTS):  # feature maps may follow
        raise UserError(
            f"the model has other inputs or outputs than {INPUT} {('batch', *IMAGE_SHAPE)}, float32, and "
            f"{LOGITS} and {PROBABILITIES} {('batch', CLASSES)}, float32"
        )


def _signature(value: onnx.ValueInfoProto) -> Signature:
    """Name, type and shape; the batch may have any symbol."""
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else "batch" for d in tensor.shape.dim)
    return value.name, tensor.elem_type, shape
