"""The trained networks of models/: ``python -m benchmarks.models``.

For each network and framework it is the run in the middle of its first ten seeds, not the best one.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from benchmarks import rows
from export.images import load_images
from export.pipeline import export
from recipe import report
from recipe.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint, state_digest
from recipe.cli import optional, run_command
from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.record import Row, origin

MODELS = rows.MODEL_LIST.parent
RUNS = Path("runs") / "models"
PACKAGES = ("torch", "jax", "flax", "onnx", "onnxruntime")


@dataclass(frozen=True)
class ModelsOptions:
    """Export the runs of runs/models/ to models/; without them, print the commands that train them."""

    data_dir: Annotated[Path | None, optional("DIR")] = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""


def publish(seed: Row, data_dir: Path | None) -> Row:
    """Write the checkpoint and the ONNX files of one run to models/ and return its entry in the list.

    Args:
        seed: the measurement that chose the run.
        data_dir: folder with MNIST.

    Raises:
        UserError: the run is not the one that was chosen, or its file cannot be verified.
    """
    folder = rows.model_folder(seed)
    path = RUNS / folder / FILE_NAME
    run = load_checkpoint(path)
    chosen = {key: seed[key] for key in ("network", "framework", "seed")}
    config = run.config | {"dataset": run.config["data"]["name"]}
    fits = all(config[key] == value for key, value in (chosen | {"threads": 1, "dataset": "mnist"}).items())
    if not fits or len(run.metrics) != len(seed["accuracies"]):
        raise UserError(f"{path} is no whole run of {rows.training_command(seed)}; remove it and train again")
    images = load_images(run, data_dir)
    if images.name != "mnist":
        raise UserError(f"models/ needs MNIST: {images.note}")
    answers = export(run, images)
    published = MODELS / folder
    published.mkdir(parents=True, exist_ok=True)
    # The losses are half of a checkpoint, and nothing that uses a model reads them.
    save_checkpoint(published / FILE_NAME, dataclasses.replace(run, losses=np.empty(0)))
    write_atomically(published / "model.onnx", answers.content)
    write_atomically(published / "feature-maps.onnx", export(run, images, feature_maps=True).content)
    return chosen | {
        "parameters": run.network.parameter_count,
        "accuracy": answers.accuracy,
        "digest": state_digest(run.tensors),
        "sha256": hashlib.sha256(answers.content).hexdigest(),
        "folder": folder,
    }


def main(options: ModelsOptions) -> None:
    """Publish every run, or say which are missing."""
    seeds = rows.middle_seeds()
    missing = [seed for seed in seeds if not (RUNS / rows.model_folder(seed) / FILE_NAME).exists()]
    for seed in missing:
        report.show_line(rows.training_command(seed))
    if missing:
        raise UserError(f"{RUNS} lacks the runs of these {len(missing)} commands; run them first")
    about = origin(PACKAGES)
    entries = [publish(seed, options.data_dir) | about for seed in seeds]
    write_atomically(rows.MODEL_LIST, (json.dumps({"models": entries}, indent=2) + "\n").encode())
    report.show_line(f"{len(entries)} models -> {MODELS.name}/; python -m benchmarks.pages makes their table")


if __name__ == "__main__":
    run_command(ModelsOptions, main, "python -m benchmarks.models")
