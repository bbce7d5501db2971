"""The tables of docs/recipe.md: every trial on record, and what the seeds of the recipes came to."""

import dataclasses
from typing import Any

import numpy as np

from benchmarks.equivalence import describe_equivalence
from benchmarks.tables import FRAMEWORKS, Tables, load_result, load_results, markdown_table, unmeasured
from benchmarks.tuning import BASE
from recipe.networks import NETWORKS


def describe_changes(recipe: dict[str, Any]) -> str:
    """What a trial changed in the base recipe, as its command line has it."""
    base = dataclasses.asdict(BASE)
    return " ".join(f"{key}={value}" for key, value in recipe.items() if value != base[key])


def mean_of(trial: dict[str, Any], key: str) -> float:
    """The mean of a figure over a trial's seeds."""
    return float(np.mean([found[key] for found in trial["seeds"].values()]))


def trials_table(trials: list[dict[str, Any]]) -> str:
    """Trials in order of their loss on the hold-out, the lowest first."""
    rows = [
        [
            f"`{trial['network']}`",
            describe_changes(trial["recipe"]) or "-",
            f"{trial['parameters']:,}",
            str(len(trial["seeds"])),
            f"{mean_of(trial, 'val_loss'):.4f}",
            f"{100 * mean_of(trial, 'final'):.2f}",
            f"{100 * mean_of(trial, 'shifted'):.2f}",
            f"{mean_of(trial, 'train_loss'):.4f}",
        ]
        for trial in sorted(trials, key=lambda trial: mean_of(trial, "val_loss"))
    ]
    header = ["network", "changes", "parameters", "seeds", "loss", "accuracy", "with shifts", "training loss"]
    return markdown_table(header, rows)


def recipe_trials_table() -> str:
    """Trials of recipes on the published networks."""
    result = load_result("tuning")
    if result is None:
        return unmeasured("benchmarks.tuning")
    return trials_table([trial for trial in result["trials"] if trial["network"] in NETWORKS])


def network_trials_table() -> str:
    """Trials of layer tables, and of recipes on them."""
    result = load_result("tuning")
    if result is None:
        return unmeasured("benchmarks.tuning")
    return trials_table([trial for trial in result["trials"] if trial["network"] not in NETWORKS])


def accuracy_table() -> str:
    """What the chosen recipes gave on the test images, seed by seed, and the equivalence test."""
    rows, lines = [], []
    for result in load_results("seeds-*.json"):
        for kind, found in result["summary"].items():
            finals = ", ".join(f"{100 * seed['final']:.2f}" for seed in result[kind].values())
            rows.append(
                [
                    f"`{result['network']}`",
                    FRAMEWORKS[kind],
                    finals,
                    f"{found['mean']:.3f}",
                    f"{found['mean_best']:.3f}",
                    f"{found['mean_shifted']:.3f}",
                ]
            )
        lines.append(f"- `{result['network']}`: {describe_equivalence(result['equivalence'])}")
    header = ["network", "framework", "last epoch of each seed", "mean", "mean of the best epochs"]
    return markdown_table([*header, "mean with shifts"], rows) + "\n\n" + "\n".join(lines)


TABLES: Tables = {
    "accuracy": accuracy_table,
    "recipes": recipe_trials_table,
    "networks": network_trials_table,
}
