"""Export a checkpoint: ``python -m export --help``."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx

from export.images import Images, load_images
from export.metadata import DESCRIBED
from export.pipeline import Export, export
from export.verify import BATCHES, run_model
from recipe import report
from recipe.checkpoint import Checkpoint, load_checkpoint
from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.options import check_choice, choice, run_command


@dataclass(frozen=True)
class ExportOptions:
    """Write a verified ONNX file from a training run of either framework."""

    checkpoint: Path
    """The run's checkpoint.safetensors."""
    out: Path
    """The file to write."""
    int8: bool = False
    """Quantise to int8 (static QDQ, calibrated on training images)."""
    merge: bool = True
    """Merge convolutions with nothing between them."""
    via: Annotated[str, choice("table", "jax2onnx")] = "table"
    """table: built from the layer table, folded. jax2onnx: from the Flax module, as it is."""
    data_dir: Path | None = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""


def main(options: ExportOptions) -> None:
    """Export as the command line says.

    Raises:
        UserError: a faulty checkpoint, data folder or destination, or a file that could not be verified.
    """
    check_choice("--via", options.via, "table", "jax2onnx")
    if options.int8 and options.via != "table":
        raise UserError("--int8 goes with --via table only")
    checkpoint = load_checkpoint(options.checkpoint)
    checkpoint.check_config(*DESCRIBED)
    images = load_images(checkpoint, options.data_dir)
    if images.note:
        report.show_notice(images.note)
    try:
        exported = export(checkpoint, images, options.int8, options.merge, options.via)
    except UserError as error:
        raise UserError(f"{options.out} was not written: {error}") from error
    write_atomically(options.out, exported.content)
    _report(options, checkpoint, images, exported)


def _report(options: ExportOptions, checkpoint: Checkpoint, images: Images, exported: Export) -> None:
    found, model = exported.verification, onnx.load_model_from_string(exported.content)
    operators = [node.op_type for node in model.graph.node]
    counts = ", ".join(f"{operators.count(name)} {name}" for name in dict.fromkeys(operators))
    framework = checkpoint.config["framework"]
    lines = [
        f"{options.out}: {checkpoint.network.name} of {framework}, step {checkpoint.step}, "
        f"{len(exported.content):,} bytes, SHA-256 {hashlib.sha256(exported.content).hexdigest()}",
        f"  nodes: {counts}",
        f"  verified on {found.images:,} {images.name} images in batches of {', '.join(map(str, BATCHES))}",
        f"  largest difference of a logit: {found.difference:.2g} from {framework} in float64, "
        f"{found.difference_float32:.2g} from {framework} in float32, {found.between_batches:.2g} between "
        f"batches (largest logit {found.largest_logit:.1f})",
        f"  same class as {framework}: {found.same_class:,} of {found.images:,}",
    ]
    if options.via == "jax2onnx":
        other = export(checkpoint, images)
        difference, same = _compare(exported.content, other.content, images.test)
        lines.append(
            f"  against the file that --via table writes: largest difference {difference:.2g}, "
            f"same class {same:,} of {found.images:,}"
        )
    if found.accuracy is not None:
        lines.append(f"  accuracy of this file: {100 * found.accuracy:.2f} %")
    for line in lines:
        report.show_line(line)


def _compare(content: bytes, other: bytes, images: np.ndarray) -> tuple[float, int]:
    """Largest difference of a logit between two files, and how many images they put into the same class."""
    first, second = (run_model(each, images, BATCHES[-1])[0] for each in (content, other))
    return float(np.abs(first - second).max()), int((first.argmax(1) == second.argmax(1)).sum())


if __name__ == "__main__":
    run_command(ExportOptions, main, "python -m export")
