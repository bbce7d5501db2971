"""The trained networks of models/: ``python -m benchmarks.models``.

For each network and framework it is the run in the middle of its first ten seeds, not the best one.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.accuracy import recorded_seeds
from benchmarks.record import RESULTS, Row, grouped, origin
from benchmarks.tables import LABELS, make_table
from export.images import load_images
from export.pipeline import export
from recipe import console
from recipe.checkpoint import (
    FILE_NAME,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    state_digest,
    write_atomically,
)
from recipe.console import UserError, option, run_command
from recipe.recipes import get_recipe

MODELS = RESULTS.parent / "models"
MODEL_LIST = MODELS / "models.json"
RUNS = Path("runs") / "models"
SEEDS = 10  # models/ has the run in the middle of so many; the number was fixed before the first
CHOSEN = ("network", "framework", "seed")  # what says which run is published
PACKAGES = ("torch", "jax", "flax", "onnx", "onnxruntime")


@dataclass(frozen=True)
class ModelsOptions:
    """Export the runs of runs/models/ to models/, and those there again; print what trains the others."""

    data_dir: Path | None = option(
        None, "Folder with the four original MNIST files (or set MNIST_DIR)", metavar="DIR"
    )


def middle_seeds() -> list[Row]:
    """Of a network's ten first seeds in a framework the one in the middle, of two the lower one."""
    first = [row for row in recorded_seeds("tuned", device="cpu") if row["seed"] < SEEDS]
    return [
        sorted(group, key=lambda row: (row["final"], row["seed"]))[(SEEDS - 1) // 2]
        for group in grouped(first, "network", "framework")
        if len(group) == SEEDS
    ]


def folder_of(seed: Row) -> str:
    """The folder of a published model, in models/ and of its run in runs/models/."""
    return f"{seed['network']}-{seed['framework']}"


def training_command(seed: Row) -> str:
    """The command that trains a seed on record once more, on one core, so that its bits can be had again."""
    options = f"--network {seed['network']} --seed {seed['seed']} --out runs/models/{folder_of(seed)}"
    return f"taskset -c 0 python -m {seed['framework']}_impl.train {options}"


def find_run(seed: Row) -> Checkpoint | None:
    """The whole run that was chosen: from runs/models/, else the published one, else None (train it)."""
    recipe = get_recipe(seed["network"], "tuned")
    chosen = {key: seed[key] for key in CHOSEN} | {"threads": 1, "recipe": recipe}
    for path in (folder / folder_of(seed) / FILE_NAME for folder in (RUNS, MODELS)):
        if path.exists():
            run = load_checkpoint(path)
            fits = all(getattr(run.config, key) == value for key, value in chosen.items())
            if fits and len(run.metrics) == recipe.epochs:
                return run
    return None


def publish(seed: Row, run: Checkpoint, data_dir: Path | None) -> Row:
    """Write the checkpoint and the ONNX files of one run to models/ and return its entry in the list.

    Args:
        seed: the measurement that chose the run.
        run: the run.
        data_dir: folder with MNIST.

    Raises:
        UserError: a file cannot be verified.
    """
    images = load_images(run, data_dir)
    if images.name != "mnist":
        raise UserError(f"models/ needs MNIST: {images.note}")
    answers = export(run, images)
    folder = folder_of(seed)
    published = MODELS / folder
    published.mkdir(parents=True, exist_ok=True)
    # The losses are half of a checkpoint, and nothing that uses a model reads them.
    save_checkpoint(published / FILE_NAME, dataclasses.replace(run, losses=np.empty(0)))
    write_atomically(published / "model.onnx", answers.content)
    write_atomically(published / "feature-maps.onnx", export(run, images, feature_maps=True).content)
    return {key: seed[key] for key in CHOSEN} | {
        "parameters": run.network.parameter_count,
        "accuracy": answers.accuracy,
        "digest": state_digest(run.tensors),
        "sha256": hashlib.sha256(answers.content).hexdigest(),
        "folder": folder,
    }


def main(options: ModelsOptions) -> None:
    """Publish every run, or say which are missing."""
    runs = [(seed, find_run(seed)) for seed in middle_seeds()]
    missing = [seed for seed, run in runs if run is None]
    for seed in missing:
        console.show_line(training_command(seed))
    if missing:
        raise UserError(f"{RUNS} lacks the runs of these {len(missing)} commands; run them first")
    about = origin(PACKAGES)
    entries = [publish(seed, run, options.data_dir) | about for seed, run in runs if run]
    write_atomically(MODEL_LIST, (json.dumps({"models": entries}, indent=2) + "\n").encode())
    console.show_line(f"{len(entries)} models -> models/; python -m benchmarks.pages makes their table")


def models_table() -> str:
    """The published models and the commands that train them."""
    entries = json.loads(MODEL_LIST.read_text())["models"]
    rows = [row | {"label": LABELS[row["framework"]], "again": training_command(row)} for row in entries]
    return make_table(
        "folder | trained with | accuracy | seed | SHA-256 of the state | of `model.onnx` | trained by",
        "`{folder}` | {label} | {accuracy:.2%} | {seed} | `{digest:.12}` | `{sha256:.12}` | `{again}`",
        rows,
        "benchmarks.models",
    )


def claim() -> str:
    """README's line on the page in demo/."""
    size = (MODELS / "net9954-torch" / "model.onnx").stat().st_size / 1e3
    return f"draw a digit, and both networks read it in the browser, each from {size:.0f} kB"


if __name__ == "__main__":
    run_command(ModelsOptions, main, "python -m benchmarks.models")
