"""Accuracy over several seeds in one or both frameworks: ``python -m benchmarks.accuracy --help``."""

import textwrap
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np

from benchmarks.accuracy.equivalence import compare_frameworks, describe
from benchmarks.accuracy.seeds import LABELS, load_framework, train_seed
from recipe import data, record, report
from recipe.cli import check_range, optional, run_command
from recipe.errors import UserError
from recipe.networks import get_network
from recipe.options import MAX_EPOCHS, NETWORK, DataOptions, DeviceOptions
from recipe.recipes import RECIPES, get_recipe
from recipe.record import Row


@dataclass(frozen=True)
class AccuracyOptions(record.PublishOptions, DeviceOptions, DataOptions):
    """Train several seeds and compare the frameworks' accuracies."""

    network: Annotated[str, optional(NETWORK, "net10040")] = "net10040"
    """Which network to train; python -m torch_impl.train --help says how to list layers."""
    recipe: Annotated[str, optional("|".join(RECIPES), "tuned")] = "tuned"
    """Which hyperparameters to use."""
    framework: Literal["torch", "jax", "both"] = "both"
    """Train in PyTorch, in Flax, or in both."""
    seeds: int = 5
    """Number of seeds: 0 to SEEDS - 1. With --publish, seeds on record are not trained again."""
    epochs: Annotated[int | None, optional("INT", "the recipe's")] = None
    """Length of the schedule."""


def describe_seed(row: Row, origin: str) -> str:
    """One line on one seed, in percent: at most 80 columns."""
    return (
        f"{LABELS[row['framework']]:8}seed {row['seed']:<3} last {100 * row['final']:.2f}  "
        f"best {100 * row['best']:.2f} ({row['best_epoch']})  tta {100 * row['tta']:.2f}  {origin}"
    )


def summarise(rows: list[Row]) -> list[str]:
    """Mean, standard deviation and lowest of each framework, and the equivalence test; 80 columns."""
    lines = []
    for name, label in LABELS.items():
        final = np.array([100 * row["final"] for row in rows if row["framework"] == name])
        if len(final):
            std = f" +- {final.std(ddof=1):.3f}" if len(final) > 1 else ""
            tta = 100 * np.mean([row["tta"] for row in rows if row["framework"] == name])
            lines.append(
                f"{label:8}{report.count(len(final), 'seed')}: mean {final.mean():.3f}{std}, "
                f"lowest {final.min():.2f}; with tta {tta:.3f}"
            )
    if len(lines) == len(LABELS):
        lines += textwrap.wrap(describe(compare_frameworks(rows)), 80)
    return lines


def main(options: AccuracyOptions) -> None:
    """Train, measure and compare as the command line says."""
    check_range("--seeds", options.seeds, 1, 10_000)
    check_range("--epochs", options.epochs, 1, MAX_EPOCHS)
    network = get_network(options.network)
    recipe = get_recipe(network.name, options.recipe)
    if options.publish and options.epochs not in (None, recipe.epochs):
        raise UserError("--publish needs the recipe's own schedule; leave out --epochs")
    recipe = replace(recipe, epochs=options.epochs or recipe.epochs)
    frameworks = [load_framework(name) for name in LABELS if options.framework in (name, "both")]
    loaded = data.load(options.dataset, options.data_dir, frameworks[0].read_mnist)
    if loaded.note:
        report.show_notice(loaded.note)
    options.check_publishable(loaded.dataset.name)
    what = {
        "network": network.name,
        "parameters": network.parameter_count,
        "recipe": recipe.name,
        "dataset": loaded.dataset.name,
    }
    report.show_line(
        f"{network.name}, {recipe.name}, {report.count(recipe.epochs, 'epoch')}, {loaded.dataset.name}: "
        "accuracy in percent"
    )
    report.show_line("after the last epoch, at best (epoch), and with test-time augmentation (tta)")
    split = data.split(loaded.dataset, "test")
    rows: list[Row] = []
    trained = False
    for seed in range(options.seeds):
        for framework in frameworks:
            known = options.publish and record.read_rows(
                "seeds", record.RESULTS, **what, framework=framework.name, seed=seed
            )
            if known:
                row, origin = known[-1], "on record, not trained"
            else:
                row = what | train_seed(framework, network, recipe, split, seed, options.device)
                record.add_rows("seeds", [row], framework.packages, options.publish)
                trained, origin = True, f"{row['seconds']:,.0f} s"
            rows.append(row)
            report.show_line(describe_seed(row, origin))
    for line in summarise(rows):
        report.show_line(line)
    folder = "results" if options.publish else record.BENCH
    report.show_line(
        f"-> {folder}/seeds.jsonl" if trained else "Every seed is on record; nothing was trained."
    )


if __name__ == "__main__":
    run_command(AccuracyOptions, main, "python -m benchmarks.accuracy")
