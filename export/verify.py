"""Check that a file computes what the checkpoint's framework computes."""

from dataclasses import dataclass

import numpy as np
import onnx

from export.build import INPUT, LOGITS, PROBABILITIES
from export.structure import check_structure
from recipe.console import UserError, reason

BATCHES = (1, 2, 7, 1000)
# How far float32 logits may be from the framework's in float64: 1e-5 or, where a logit exceeds 25, about 3.4
# units in the last place of the largest, since a float32 has no more digits.
TOLERANCE, RELATIVE_TOLERANCE = 1e-5, 4e-7
PROBABILITY_TOLERANCE = 1e-6
INT8_AGREEMENT = 0.98  # fraction of images that int8 must put into the same class; below, something is broken


@dataclass(frozen=True)
class Verification:
    """How far a file is from the framework; each number is the worst over all images and batch sizes."""

    images: int
    difference: float  # |logits - the framework's in float64|
    difference_float32: float  # |logits - the framework's in float32|, which has rounding errors of its own
    between_batches: float  # |logits - logits at another batch size|
    same_class: int  # images with the same argmax as the framework's in float32
    largest_logit: float

    @property
    def limit(self) -> float:
        """The largest allowed `difference`."""
        return max(TOLERANCE, RELATIVE_TOLERANCE * self.largest_logit)


def run_model(content: bytes, images: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities, float32 (N, 10), of images (N, 1, 28, 28), `batch` at a time.

    Raises:
        UserError: ONNX Runtime cannot load or run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the exception says what goes wrong
    options.intra_op_num_threads = 1  # small batches gain nothing from more threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        results = [
            session.run([LOGITS, PROBABILITIES], {INPUT: images[start : start + batch]})
            for start in range(0, len(images), batch)
        ]
    except Exception as error:  # ONNX Runtime raises a dozen kinds that share no base class
        raise UserError(f"ONNX Runtime cannot run the model: {reason(error)}") from error
    logits, probabilities = zip(*results, strict=True)
    return np.concatenate(logits), np.concatenate(probabilities)


def verify(
    content: bytes, images: np.ndarray, source64: np.ndarray, source32: np.ndarray, int8: bool = False
) -> Verification:
    """Run a file on all images in every batch size of `BATCHES` and compare with the framework.

    Args:
        content: the file, byte for byte.
        images: float32 (N, 1, 28, 28) in 0..1.
        source64: the framework's logits (N, 10) in float64, from `export.source.source_logits`.
        source32: the same in float32.
        int8: the file is quantised: its logits may differ, its classes hardly.

    Raises:
        UserError: it is not a valid model or not the same function.
    """
    check_structure(onnx.load_model_from_string(content))
    results = {batch: run_model(content, images, batch) for batch in BATCHES}
    for batch, (logits, probabilities) in results.items():
        error = _largest(probabilities - _softmax(logits))
        if not np.isfinite(logits).all() or error > PROBABILITY_TOLERANCE:
            raise UserError(f"at batch {batch} the probabilities are not the softmax of the logits")
    all_logits = np.stack([logits for logits, _ in results.values()])
    verification = Verification(
        images=len(images),
        difference=_largest(all_logits - source64),
        difference_float32=_largest(all_logits - source32),
        between_batches=_largest(all_logits - all_logits[0]),
        same_class=int((all_logits.argmax(2) == source32.argmax(1)).all(0).sum()),
        largest_logit=_largest(source64),
    )
    _judge(verification, int8)
    return verification


def _judge(result: Verification, int8: bool) -> None:
    if result.same_class < (INT8_AGREEMENT if int8 else 1) * result.images:
        raise UserError(
            f"only {result.same_class:,} of {result.images:,} images get the class that the framework gives"
        )
    if not int8 and result.difference > result.limit:
        raise UserError(
            f"logits differ by {result.difference:.2g} from the framework's; "
            f"at most {result.limit:.2g} is allowed"
        )
    if result.between_batches > result.limit:
        raise UserError(f"logits differ by {result.between_batches:.2g} between batch sizes {BATCHES}")


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())
