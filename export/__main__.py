"""Export a checkpoint: ``python -m export --help``."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.images import Images, load_images
from export.pipeline import Export, export
from export.verify import BATCHES
from recipe import console
from recipe.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, write_atomically
from recipe.console import UserError, option, run_command


@dataclass(frozen=True)
class ExportOptions:
    """Write a verified ONNX file from a training run of either framework."""

    checkpoint: Path = option(help="The run: its folder or its checkpoint", metavar="RUN")
    out: Path = option(help="The file to write", metavar="FILE")
    int8: bool = option(False, "Quantise to int8 (static QDQ, calibrated on training images)")
    feature_maps: bool = option(
        False, "Add an output for the feature maps of each layer, as demo/ shows them"
    )
    data_dir: Path | None = option(
        None, "Folder with the four original MNIST files (or set MNIST_DIR)", metavar="DIR"
    )


def main(options: ExportOptions) -> None:
    """Export as the command line says.

    Raises:
        UserError: a faulty checkpoint, data folder or destination, or a file that could not be verified.
    """
    if options.int8 and options.feature_maps:
        raise UserError("--feature-maps are float32; leave out --int8")
    check_destination(options.out)
    checkpoint = load_checkpoint(find_checkpoint(options.checkpoint))
    images = load_images(checkpoint, options.data_dir)
    if images.note:
        console.show_notice(images.note)
    try:
        exported = export(checkpoint, images, options.int8, options.feature_maps)
    except UserError as error:
        raise UserError(f"{options.out} was not written: {error}") from error
    write_atomically(options.out, exported.content)
    for line in describe_export(options.out, checkpoint, images, exported):
        console.show_line(line)


def check_destination(path: Path) -> None:
    """Refuse a file that cannot be written, before the work and not after it.

    Raises:
        UserError: it is a folder, or lies in one where nobody may write.
    """
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder; give the file's name too")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    if not writable:
        raise UserError(f"cannot write {path}: {folder} is no folder that you may write to")


def describe_export(out: Path, checkpoint: Checkpoint, images: Images, exported: Export) -> list[str]:
    """The lines that the command prints."""
    result, model = exported.verification, onnx.load_model_from_string(exported.content)
    operators = [node.op_type for node in model.graph.node]
    counts = ", ".join(f"{operators.count(name)} {name}" for name in dict.fromkeys(operators))
    framework = checkpoint.config.framework
    lines = [
        f"{out}: {checkpoint.network.name} of {framework}, step {checkpoint.step}, "
        f"{len(exported.content):,} bytes, SHA-256 {hashlib.sha256(exported.content).hexdigest()}",
        f"  nodes: {counts}",
        f"  outputs: {', '.join(value.name for value in model.graph.output)}",
        f"  verified on {result.images:,} {images.name} images in batches of {', '.join(map(str, BATCHES))}",
        f"  largest difference of a logit: {result.difference:.2g} from {framework} in float64, "
        f"{result.difference_float32:.2g} from {framework} in float32, {result.between_batches:.2g} between "
        f"batches (largest logit {result.largest_logit:.1f})",
        f"  same class as {framework}: {result.same_class:,} of {result.images:,}",
    ]
    if exported.accuracy is not None:
        lines.append(f"  accuracy of this file: {100 * exported.accuracy:.2f} %")
    return lines


if __name__ == "__main__":
    run_command(ExportOptions, main, "python -m export")
