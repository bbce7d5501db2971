"""Recipes and layer tables tried on the hold-out: ``python -m benchmarks.tuning --help``.

A trial is a network, the recipe `tuned` of net10040, and what is changed in it. It trains in PyTorch on
the first 55,000 training images and is judged by the last 5,000, whole schedule, last epoch; the test
images are never looked at. All trials are collected in one file, so that what failed stays on record.
"""

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock

from benchmarks.machine import processor_name, write_result
from benchmarks.shifts import shifted_accuracy
from recipe import data, report
from recipe.data import Split
from recipe.errors import UserError
from recipe.networks import (
    Average,
    Conv,
    MaxPool,
    Network,
    Norm,
    Operation,
    Relu,
    build_network,
    get_network,
)
from recipe.options import check_range, optional, run_command
from recipe.plan import make_plan, steps_per_epoch
from recipe.recipes import Recipe, get_recipe
from recipe.run import initial_tensors
from torch_impl.train import FRAMEWORK

BASE = get_recipe("net10040", "tuned")  # what trials change


@dataclass(frozen=True)
class TuningOptions:
    """Train one trial on the hold-out, seed by seed, and add it to the record."""

    network: str = "net10040"
    """A network's name, or the layers of one to try, such as '10 30 10x1 pool 14 14 average 10x1'."""
    changes: tuple[str, ...] = ()
    """What differs from net10040's recipe `tuned`, such as batch=32 ema=None."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train; those on record already are left out."""
    data_dir: Annotated[Path | None, optional("DIR")] = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    out: Path = Path("results/tuning.json")
    """The record."""


def parse_network(text: str) -> Network:
    """The network of that name, or one of the layers that the text lists.

    A number is a 3x3 convolution with padding to so many channels, ``NxK`` one with a K x K kernel, each
    followed by batch norm and ReLU (the last one by neither); ``pool`` and ``average`` are what they say.

    Raises:
        UserError: the text is neither.
    """
    words = text.split()
    if len(words) < 2:
        return get_network(text)
    operations: list[Operation] = []
    for position, word in enumerate(words):
        if word in ("pool", "average"):
            operations.append(MaxPool() if word == "pool" else Average())
            continue
        channels, _, kernel = word.partition("x")
        try:
            side = int(kernel or 3)
            operations.append(Conv(int(channels), side, side // 2, bias=False))
        except ValueError:
            raise UserError(f"--network: {word!r} is no layer; give numbers, NxK, pool or average") from None
        if position < max(n for n, other in enumerate(words) if other[0].isdigit()):
            operations += [Norm(), Relu()]
    try:
        return build_network(text, operations)
    except ValueError as error:
        raise UserError(f"--network: {error}") from None


def parse_changes(changes: tuple[str, ...]) -> Recipe:
    """`BASE` with some fields changed.

    Raises:
        UserError: naming the change that is none.
    """
    fields = {field.name for field in dataclasses.fields(Recipe)} - {"name"}
    found: dict[str, Any] = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in fields:
            raise UserError(
                f"--changes {change}: a recipe has no {name!r}; it has {', '.join(sorted(fields))}"
            )
        try:
            found[name] = json.loads({"None": "null", "True": "true", "False": "false"}.get(value, value))
        except ValueError:
            raise UserError(
                f"--changes {change}: {value!r} is no value; give a number, True or None"
            ) from None
    return replace(BASE, **found)


def try_seed(network: Network, recipe: Recipe, split: Split, seed: int) -> dict[str, Any]:
    """Train one seed on a split: its validation losses and accuracies (0 to 1), epoch by epoch."""
    trainer = FRAMEWORK.trainer(network, recipe, split, "auto", "float32")
    trainer.load(initial_tensors(network, recipe, seed, "float32"))
    images = len(split.train_images)
    per_epoch = steps_per_epoch(recipe, images)
    entries = []
    with report.make_progress() as progress:
        task = progress.add_task(f"seed {seed}", total=per_epoch * recipe.epochs)
        for epoch in range(recipe.epochs):
            plan = make_plan(network, recipe, seed, images, epoch * per_epoch, (epoch + 1) * per_epoch)
            losses, _ = trainer.train(plan, lambda steps: progress.advance(task, steps))
            entries.append((float(losses.mean()), *trainer.evaluate()))
    train_losses, val_losses, accuracies = zip(*entries, strict=True)
    return {
        "final": accuracies[-1],
        "val_loss": val_losses[-1],
        "train_loss": train_losses[-1],
        "shifted": shifted_accuracy(FRAMEWORK, network, recipe, split, trainer.tensors(), "float32"),
        "processor": processor_name(),
        "accuracies": accuracies,
        "val_losses": val_losses,
    }


def record(path: Path, trial: dict[str, Any], seed: int, found: dict[str, Any]) -> None:
    """Add a seed's result to the record, which other processes may be adding to as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        result = load_record(path)
        for known in result["trials"]:
            if all(known[key] == value for key, value in trial.items()):
                known["seeds"][str(seed)] = found
                break
        else:
            result["trials"].append(trial | {"seeds": {str(seed): found}})
        write_result(path, result)


def load_record(path: Path) -> dict[str, Any]:
    """The record so far: ``{"trials": [{network, parameters, recipe, seeds: {seed: ...}}, ...], ...}``."""
    return json.loads(path.read_text()) if path.exists() else {"trials": []}


def main(options: TuningOptions) -> None:
    """Train the trial's seeds that are not on record yet."""
    for seed in options.seeds:
        check_range("--seeds", seed, 0, 2**63 - 1)
    network, recipe = parse_network(options.network), parse_changes(options.changes)
    trial = {
        "network": network.name,
        "parameters": network.parameter_count,
        "recipe": dataclasses.asdict(recipe),
    }
    split = data.split(data.load("mnist", options.data_dir, FRAMEWORK.read_mnist).dataset, "holdout")
    for seed in options.seeds:
        done = (
            known["seeds"]
            for known in load_record(options.out)["trials"]
            if all(known[key] == value for key, value in trial.items())
        )
        if any(str(seed) in seeds for seeds in done):
            report.show_line(f"seed {seed}: on record already")
            continue
        found = try_seed(network, recipe, split, seed)
        record(options.out, trial, seed, found)
        report.show_line(
            f"{network.name} ({network.parameter_count:,}) {' '.join(options.changes) or 'unchanged'}  "
            f"seed {seed}: {100 * found['final']:.2f} %, loss {found['val_loss']:.4f} (training "
            f"{found['train_loss']:.4f}), averaged over shifts {100 * found['shifted']:.2f} %"
        )


if __name__ == "__main__":
    run_command(TuningOptions, main, "python -m benchmarks.tuning")
