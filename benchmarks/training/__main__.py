"""Training speed against two hand-written scripts: ``python -m benchmarks.training --help``."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from benchmarks.training.contenders import LABELS, Contender
from benchmarks.training.measure import measure_accuracy, measure_batch, measure_profile, measure_steps
from benchmarks.workers import Columns, resolve_device, show_table
from recipe import data, report
from recipe.cli import check_range, optional, run_command
from recipe.data import Split
from recipe.errors import UserError
from recipe.networks import get_network
from recipe.options import MAX_BATCH, MAX_EPOCHS, NETWORK, DataOptions, DeviceOptions, Precision
from recipe.recipes import RECIPES, get_recipe
from recipe.record import PublishOptions, Row, add_rows

SCRIPTED = ("net10040", "net9954")  # the networks that the hand-written scripts train
PACKAGES = ("torch", "torchvision", "jax", "jaxlib", "flax", "optax", "numpy")

Kind = Literal["torch-script", "torch", "jax-script", "jax"]


@dataclass(frozen=True)
class TrainingOptions(DeviceOptions, DataOptions, PublishOptions):
    """Time training in both frameworks, beside hand-written scripts.

    By default it times steps and one epoch. With --batches, --profile or
    --time-to-accuracy it measures something else.
    """

    network: Annotated[str | None, optional(NETWORK, " and ".join(SCRIPTED))] = None
    """Which network to train; python -m torch_impl.train --help says how to list layers."""
    recipe: Annotated[str, optional("|".join(RECIPES), "reference")] = "reference"
    """Which hyperparameters to use; the scripts always use those of reference."""
    contenders: tuple[Kind, ...] = ("torch-script", "torch", "jax-script", "jax")
    """What to time."""
    batch: Annotated[int | None, optional("INT", "the recipe's")] = None
    """Images in each step."""
    precision: tuple[Precision, ...] = ("float32",)
    """Types of the arithmetic to compare; the scripts always use float32."""
    rounds: int = 5
    """How often each contender is timed."""
    steps: int = 20
    """Training steps in one round."""
    epochs: int = 1
    """Whole epochs to time after the steps."""
    batches: Annotated[tuple[int, ...], optional("INT ...")] = ()
    """Instead: time per image and memory at these batch sizes."""
    profile: bool = False
    """Instead: which operations take the time (CPU)."""
    time_to_accuracy: Annotated[tuple[int, ...], optional("EPOCHS ...")] = ()
    """Instead: time to 99.4 % accuracy on schedules of so many epochs; use it with --recipe tuned."""
    seeds: int = 5
    """Runs of each contender with --time-to-accuracy."""


def check(options: TrainingOptions) -> None:
    """Check the numbers.

    Raises:
        UserError: naming the first faulty option.
    """
    check_range("--batch", options.batch, 1, MAX_BATCH)
    check_range("--rounds", options.rounds, 1, 1000)
    check_range("--steps", options.steps, 1, 10_000)
    check_range("--epochs", options.epochs, 0, 100)
    for batch in options.batches:
        check_range("--batches", batch, 1, MAX_BATCH)
    for epochs in options.time_to_accuracy:
        check_range("--time-to-accuracy", epochs, 1, MAX_EPOCHS)
    check_range("--seeds", options.seeds, 1, 1000)
    if not options.contenders or not options.precision:
        raise UserError("--contenders and --precision need at least one value")


def main(options: TrainingOptions) -> None:
    """Measure, print, and record what the options say.

    Raises:
        UserError: a faulty option or data folder, or a contender fails.
    """
    check(options)
    networks = SCRIPTED if options.network is None else (get_network(options.network).name,)
    for network in networks:
        get_recipe(network, options.recipe)

    from torch_impl.data import read_mnist

    loaded = data.load(options.dataset, options.data_dir, read_mnist)
    split = data.split(loaded.dataset, "test")
    options.check_publishable(loaded.dataset.name)
    if loaded.note:
        report.show_notice(loaded.note)
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        report.show_notice("TORCHDYNAMO_DISABLE is set: PyTorch is timed without torch.compile")
    path = None
    for network in networks:
        for rows in measure(options, network, split):
            path = add_rows(
                "training",
                [row | {"dataset": loaded.dataset.name} for row in rows],
                PACKAGES,
                options.publish,
            )
    report.show_line(f"-> {path}")


def measure(options: TrainingOptions, network: str, split: Split) -> Iterator[list[Row]]:
    """Measure one network; yield rows as soon as there are some, printed already."""
    recipe = get_recipe(network, options.recipe)
    recipe = replace(recipe, batch=options.batch or recipe.batch)
    for batch in (recipe.batch, *options.batches):
        check_range("a batch of", batch, 1, len(split.train_images))
    device = resolve_device(options.device)
    contenders = [
        Contender(kind, network, recipe, device, precision)
        for kind in LABELS
        if kind in options.contenders
        for precision in (("float32",) if kind.endswith("-script") else options.precision)
    ]
    ours = [contender for contender in contenders if not contender.is_script]
    title = f"{network}, {recipe.name}, {device}"
    if options.profile:
        for contender in ours:
            yield show(
                f"{title}, {contender.label}", PROFILE, measure_profile(contender, split, options.steps)
            )
    elif options.batches:
        for contender in ours:
            sized = [replace(contender, recipe=replace(recipe, batch=batch)) for batch in options.batches]
            yield show(title, BATCHES, [row for each in sized for row in measure_batch(each, split)])
    elif options.time_to_accuracy:
        for epochs in options.time_to_accuracy:
            yield show(title, ACCURACY, measure_accuracy(ours, split, epochs, options.seeds))
    else:
        if network not in SCRIPTED:
            report.show_notice(f"the scripts do not train {network}: without them")
            contenders = ours
        if contenders:
            rows = measure_steps(contenders, split, options.rounds, options.steps, options.epochs)
            yield show(f"{title}, batch {recipe.batch}", STEPS, rows)


def show(title: str, columns: Columns, rows: list[Row]) -> list[Row]:
    """Print the rows as a table, and return them."""
    show_table(title, columns, rows)
    return rows


def label(row: Row) -> str:
    """The contender's name, with its precision."""
    return LABELS[row["contender"]] + ("" if row["precision"] == "float32" else f" {row['precision']}")


STEPS: Columns = {
    "": label,
    "ms/step": lambda row: f"{row['step_ms']:.2f}",
    "range": lambda row: f"{row['step_ms_low']:.4g}-{row['step_ms_high']:.4g}",
    "speedup": lambda row: f"{row['speedup']:.2f}x" if "speedup" in row else "",
    "x limit": lambda row: f"{row['times_limit']:.1f}",
    "epoch s": lambda row: f"{row['epoch_s']:.1f}" if row["epoch_s"] else "",
    "compile s": lambda row: f"{row['compile_s']:.0f}",
}
BATCHES: Columns = {
    "": label,
    "batch": lambda row: str(row["batch"]),
    "us an image": lambda row: f"{row['us_per_image']:.1f}",
    "ms a step": lambda row: f"{row['step_ms']:.2f}",
    "MiB before": lambda row: f"{row['start_mib']:,.0f}",
    "peak MiB": lambda row: f"{row['peak_mib']:,.0f}",
}
PROFILE: Columns = {
    "operation": lambda row: row["operation"][:55],
    "ms a step": lambda row: f"{row['step_ms']:.2f}",
    "share": lambda row: f"{row['share']:.0%}",
}
ACCURACY: Columns = {
    "": label,
    "schedule": lambda row: str(row["schedule"]),
    "99.4 %": lambda row: f"{row['reached']} of {row['seeds']}",
    "epochs": lambda row: f"{row['epochs']:.1f}",
    "s of training": lambda row: f"{row['seconds']:.1f}",
    "range": lambda row: f"{row['seconds_low']:.4g}-{row['seconds_high']:.4g}",
    "best": lambda row: f"{row['best']:.2%}",
}


if __name__ == "__main__":
    run_command(TrainingOptions, main, "python -m benchmarks.training")
