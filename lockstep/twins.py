"""Train in both frameworks at once and compare every step: ``python -m lockstep --help``."""

import argparse
import textwrap
import time
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from benchmarks import record
from benchmarks.progress import show_progress
from lockstep import figure
from lockstep.runs import KINDS, SETTLED, Comparison, run_lockstep, summarise, turn_everything_on, verdict
from recipe import console, data
from recipe.checkpoint import state_digest, write_atomically
from recipe.console import check_range, option, run_command
from recipe.networks import get_network
from recipe.plan import steps_per_epoch
from recipe.recipes import RECIPES, get_recipe
from recipe.run import MAX_SEED, NETWORK, DataOptions, DeviceOptions

PACKAGES = ("torch", "torchvision", "jax", "jaxlib", "flax", "optax", "numpy")
HEADINGS = {"torch_jax": "PyTorch, Flax", "torch_torch": "PyTorch, itself", "jax_jax": "Flax, itself"}


def _steps(text: str) -> int | str:
    if text == "all" or text.isdigit():
        return text if text == "all" else int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number or all")


@dataclass(frozen=True)
class LockstepOptions(record.PublishOptions, DeviceOptions, DataOptions):
    """Train one network in PyTorch and Flax at once and compare every step.

    To compare two models of your own: python -m lockstep pair.py --help.
    """

    network: str = option(
        "net10040",
        "Which network to train (default: net10040); torch_impl.train --help says how to list layers",
        metavar=NETWORK,
    )
    recipe: str = option("tuned", "Which hyperparameters to use (default: tuned)", metavar="|".join(RECIPES))
    steps: int | str = option(
        100,
        "How many steps of the recipe's schedule to take (default: 100); all: the whole run",
        type=_steps,
        metavar="INT|all",
    )
    precision: Literal["float64", "float32", "bitwise"] = option(
        "float64", "Type of weights and arithmetic (default: float64)"
    )
    seed: int = option(0, "Decides initial weights, image order, augmentation and dropout (default: 0)")
    noise_floor: bool = option(
        True, "Compare each framework with itself too, from weights changed in the last bit; doubles the time"
    )
    everything: bool = option(False, "Turn on dropout (0.05) and augmentation where the recipe lacks them")


def main(options: LockstepOptions) -> None:
    """Compare as the command line says; print a table, and write a row, its series and a picture.

    Raises:
        UserError: bad options or data, or a file that cannot be written.
    """
    network = get_network(options.network)
    recipe = get_recipe(network.name, options.recipe)
    if options.everything:
        recipe = turn_everything_on(recipe)
    check_range("--seed", options.seed, 0, MAX_SEED)

    import jax_impl.devices  # here, so that --help and mistakes are quick
    import jax_impl.train
    import torch_impl.devices
    import torch_impl.train

    dataset = data.load(options.dataset, options.data_dir, torch_impl.train.Trainer.read_mnist)
    images = len(dataset.train_images)
    whole = steps_per_epoch(recipe, images) * recipe.epochs
    steps = whole if isinstance(options.steps, str) else options.steps
    check_range("--steps", steps, 1, whole)
    options.check_record("lockstep", dataset.name)
    if dataset.note:
        console.show_notice(dataset.note)

    began = time.perf_counter()
    pair = [
        (torch_impl.train.Trainer, torch_impl.devices.select_devices(options.device)),
        (jax_impl.train.Trainer, jax_impl.devices.select_devices(options.device)),
    ]
    trainers = [
        trainer_type(network, recipe, dataset, devices, options.precision)
        for trainer_type, devices in pair * (2 if options.noise_floor else 1)
    ]
    console.show_line("compiling both networks, which takes a minute")
    with show_progress(steps, compiles=True) as advance:
        losses, comparisons = run_lockstep(
            trainers,
            network,
            recipe,
            images,
            steps,
            seed=options.seed,
            precision=options.precision,
            advance=lambda _: advance("a step of both"),
        )

    everything = "-everything" if options.everything else ""
    devices = [each.name for _, each in pair]
    where = "-".join(["", *devices]).replace(" ", "-") if set(devices) != {"cpu"} else ""
    seed = f"-seed{options.seed}" if options.seed else ""
    digits = "" if dataset.name == "mnist" else f"-{dataset.name}"
    run = f"{network.label}-{recipe.name}{everything}-{options.precision}-{steps}{seed}{digits}{where}"
    row = {
        "run": run,
        "network": network.name,
        "recipe": recipe.name,
        "everything": options.everything,
        "dropout": recipe.dropout if network.dropouts else 0.0,
        "augmentation": recipe.augments,
        "ema_decay": recipe.ema_decay,
        "precision": options.precision,
        "seed": options.seed,
        "dataset": dataset.name,
        "device": devices[0] if len(set(devices)) == 1 else f"PyTorch {devices[0]}, Flax {devices[1]}",
        "steps": steps,
        "seconds": round(time.perf_counter() - began, 1),
        "state_numbers": sum(tensor.size for tensor in trainers[0].tensors().values()),
        "torch_digest": state_digest(trainers[0].tensors()),
        "jax_digest": state_digest(trainers[1].tensors()),
    } | summarise(comparisons)
    if steps == whole:
        both = zip(("torch", "jax"), trainers, strict=False)
        row |= {f"{name}_accuracy": trainer.evaluate()[1] for name, trainer in both}
    show(row, comparisons)
    path = record.add_rows("lockstep", [row], PACKAGES, options.publish)
    series = figure.bin_series(losses, comparisons)
    figure.save_series(path.parent, run, series)
    picture = record.BENCH / f"lockstep-{run}.png"
    write_atomically(picture, figure.draw(row, series))
    console.show_line(f"row and series: {path.parent}\npicture: {picture}")
    console.show_line(textwrap.fill(verdict(row, comparisons["torch_jax"]), 80))


def show(row: dict[str, Any], comparisons: dict[str, Comparison]) -> None:
    """Print the comparisons as a table of at most 80 columns."""
    table = Table(title=f"largest differences over {console.count(row['steps'], 'step')}")
    table.add_column()
    for pair in comparisons:
        table.add_column(HEADINGS[pair], justify="right")
    lines = {"loss": "|loss difference|"}
    if row["steps"] > SETTLED:
        lines["loss_rms"] = f"its rms after step {SETTLED}"
    lines |= {kind: f"{kind}, relative" for kind in KINDS}
    lines |= {"unequal": "numbers that differ", "predictions": "predictions that differ"}
    for key, words in lines.items():
        if f"torch_jax_{key}" in row:
            numbers = [row[f"{pair}_{key}"] for pair in comparisons]
            table.add_row(words, *(f"{n:.1e}" if isinstance(n, float) else str(n) for n in numbers))
    console.screen.print(table)
    console.show_line("relative: norm of the difference / norm of the tensor")
    if len(comparisons) > 1:
        console.show_line("itself: the noise floor, from weights one unit in the last place higher")
    if "torch_accuracy" in row:
        console.show_line("accuracy: PyTorch {torch_accuracy:.2%}, Flax {jax_accuracy:.2%}".format(**row))
    if row["torch_digest"] == row["jax_digest"]:
        console.show_line(f"both end with SHA-256 {row['torch_digest']}")


def run() -> None:
    """The command line's program."""
    run_command(LockstepOptions, main, "python -m lockstep")
