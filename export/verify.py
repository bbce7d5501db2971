"""Proof that a file computes what the checkpoint computes, before anybody gets to see it."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from export.build import INPUT, LOGITS, PROBABILITIES
from export.images import Images
from recipe.errors import UserError
from recipe.files import read_at_most
from recipe.networks import CLASSES, IMAGE_SHAPE

BATCHES = (1, 2, 7, 1000)
# How far float32 logits may be from the source's in float64: 1e-5, and where a logit exceeds 25, about 3.4
# units in the last place of the largest, since a float32 has no more digits.
TOLERANCE, RELATIVE_TOLERANCE = 1e-5, 4e-7
INT8_AGREEMENT = 0.98  # fraction of images that int8 must put into the same class; below, something is broken
MAX_BYTES = 64 * 2**20
MAX_ELEMENTS = 2**16  # of one image's tensor between two nodes; ours have 12,544
# What --via table, --int8 and --via jax2onnx write. None of these has a graph inside, calls for other code or
# runs for ever.
OPERATORS = frozenset(
    """
    Add Conv Flatten GlobalAveragePool MaxPool Mul Relu Softmax QuantizeLinear DequantizeLinear
    AveragePool BatchNormalization Cast Concat Constant Div Einsum Expand Gather GatherND Gemm GreaterOrEqual
    Identity MatMul Max Neg Pad Range Reciprocal ReduceMax ReduceMean ReduceSum Reshape Shape Slice Sqrt
    Squeeze Sub Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 (a line each would be a page)
)


@dataclass(frozen=True)
class Verification:
    """What was found, over all images and the largest over all batch sizes."""

    images: int
    difference: float  # |logits - the source's in float64|
    difference_float32: float  # |logits - the source's in float32|, which has a rounding of its own
    between_batches: float  # |logits - logits at another batch size|
    same_class: int  # images with the same argmax as the source in float32
    largest_logit: float
    accuracy: float | None  # of the file, 0 to 1; None for random images

    @property
    def limit(self) -> float:
        """The largest allowed `difference`."""
        return max(TOLERANCE, RELATIVE_TOLERANCE * self.largest_logit)


def check_structure(model: onnx.ModelProto) -> None:
    """ONNX's own full check with strict shape inference, and the promised inputs and outputs.

    Raises:
        UserError: it is not a valid model, refers to other files, or has other inputs or outputs.
    """
    _check_parts(model)
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # its own two, RuntimeError, and UnicodeDecodeError for a name that is no text
        raise UserError(f"the model is not valid: {_first_line(error)}") from None
    if not model.graph.node:
        raise UserError("the model is empty")
    wanted = [
        (INPUT, ("batch", *IMAGE_SHAPE)),
        (LOGITS, ("batch", CLASSES)),
        (PROBABILITIES, ("batch", CLASSES)),
    ]
    names = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in names]
    found = [_signature(value) for value in (*inputs, *model.graph.output)]
    if len(inputs) != 1 or found != [(name, TensorProto.FLOAT, shape) for name, shape in wanted]:
        theirs = ", ".join(
            f"{name} {TensorProto.DataType.Name(kind).lower()} {shape}" for name, kind, shape in found
        )
        ours = ", ".join(f"{name} float {shape}" for name, shape in wanted)
        raise UserError(f"the model has other inputs or outputs: {theirs}; expected {ours}".replace("'", ""))
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        if prod(d.dim_value for d in value.type.tensor_type.shape.dim if d.dim_value > 0) > MAX_ELEMENTS:
            raise UserError(f"the model has a tensor {value.name!r} of more than {MAX_ELEMENTS:,} numbers")


def _check_parts(model: onnx.ModelProto) -> None:
    """Refuse what none of our files has, before anything computes with it."""
    graph = model.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    constants = [tensor for attribute in attributes for tensor in (attribute.t, *attribute.tensors)]
    tensors = [*graph.initializer, *constants]
    if any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in tensors):
        raise UserError("the model keeps weights in other files")
    unknown = [node.op_type for node in graph.node if node.domain or node.op_type not in OPERATORS]
    if unknown:
        raise UserError(f"the model has the operator {unknown[0]!r}, which none of Lockstep's has")
    inner = any(attribute.HasField("g") or attribute.graphs for attribute in attributes)
    sparse = any(attribute.HasField("sparse_tensor") or attribute.sparse_tensors for attribute in attributes)
    if inner or sparse or graph.sparse_initializer or model.functions or model.training_info:
        raise UserError(
            "the model has functions, inner graphs or sparse weights, which none of Lockstep's has"
        )
    for tensor in tensors:
        if min(tensor.dims, default=1) < 0 or prod(tensor.dims) > model.ByteSize():
            raise UserError(f"the model's tensor {tensor.name!r} says that it is larger than the file")


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[int | str, ...]]:
    kind = value.type.tensor_type
    dimensions = kind.shape.dim
    # Any symbol will do for the batch.
    shape = tuple(d.dim_value if d.HasField("dim_value") else "batch" for d in dimensions)
    return value.name, kind.elem_type, shape


def read_model(path: Path) -> tuple[bytes, onnx.ModelProto]:
    """Read a file that `python -m export` may have written.

    Raises:
        UserError: missing, unreadable, truncated, no ONNX model, or one with other inputs.
    """
    try:
        content = read_at_most(path, MAX_BYTES)
    except FileNotFoundError:
        raise UserError(f"there is no model {path}; write one with python -m export") from None
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MiB, hence no model of Lockstep's")
    try:
        model = onnx.load_model_from_string(content)
    except Exception:  # protobuf's DecodeError, whose module differs between its versions
        raise UserError(f"{path} is no ONNX model, or a truncated one; export it again") from None
    if not model.graph.node:  # an empty file parses as an empty model
        raise UserError(f"{path} is no ONNX model, or a truncated one; export it again")
    try:
        check_structure(model)
    except UserError as error:
        raise UserError(f"{path}: {error}; export it again") from None
    return content, model


def run_model(content: bytes, images: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities, float32 (N, 10), of images (N, 1, 28, 28), `batch` at a time.

    Raises:
        UserError: ONNX Runtime cannot load or run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said by the exception
    options.intra_op_num_threads = 1  # small batches gain nothing from more, and suffer on a busy machine
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        results = [
            session.run([LOGITS, PROBABILITIES], {INPUT: images[start : start + batch]})
            for start in range(0, len(images), batch)
        ]
    except Exception as error:  # ONNX Runtime raises a dozen kinds that share no base class
        raise UserError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error
    logits, probabilities = zip(*results, strict=True)
    return np.concatenate(logits), np.concatenate(probabilities)


def verify(
    content: bytes, images: Images, source64: np.ndarray, source32: np.ndarray, int8: bool = False
) -> Verification:
    """Run a file on all images in every batch size of `BATCHES` and compare with the source framework.

    Args:
        content: the file, byte for byte.
        images: what to run it on.
        source64: the source's logits (N, 10) in float64, from `export.source.source_logits`.
        source32: the same in float32.
        int8: the file is quantised: its logits may differ from the source's, its classes hardly.

    Raises:
        UserError: it is not a valid model or not the same function.
    """
    check_structure(onnx.load_model_from_string(content))
    difference = difference32 = between = 0.0
    same = len(images.test)
    first: np.ndarray | None = None
    for batch in BATCHES:
        logits, probabilities = run_model(content, images.test, batch)
        first = logits if first is None else first
        difference = max(difference, _largest(logits - source64))
        difference32 = max(difference32, _largest(logits - source32))
        between = max(between, _largest(logits - first))
        same = min(same, int((logits.argmax(1) == source32.argmax(1)).sum()))
        if not np.isfinite(logits).all() or _largest(probabilities - _softmax(logits)) > 1e-6:
            raise UserError(f"at batch {batch} the probabilities are not the softmax of the logits")
    assert first is not None
    found = Verification(
        images=len(images.test),
        difference=difference,
        difference_float32=difference32,
        between_batches=between,
        same_class=same,
        largest_logit=_largest(source64),
        accuracy=images.accuracy(first),
    )
    _judge(found, int8)
    return found


def _judge(found: Verification, int8: bool) -> None:
    needed = found.images if not int8 else INT8_AGREEMENT * found.images
    if found.same_class < needed:
        raise UserError(
            f"only {found.same_class:,} of {found.images:,} images are in the class that the source "
            "framework puts them in"
        )
    if not int8 and found.difference > found.limit:
        raise UserError(
            f"logits differ by {found.difference:.2g} from the source framework's; "
            f"at most {found.limit:.2g} is allowed"
        )
    if found.between_batches > found.limit:
        raise UserError(f"logits differ by {found.between_batches:.2g} between batch sizes {BATCHES}")


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
