"""Recipes and layer tables tried on the hold-out: ``python -m benchmarks.accuracy.tuning --help``.

A trial is a network and what it changes in net10040's recipe `tuned`. It trains in PyTorch on the first
55,000 training images and is judged by the last 5,000 after its last epoch; it never sees the test images.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any

from benchmarks.accuracy.seeds import load_framework, train_seed
from recipe import data, record, report
from recipe.cli import check_range, optional, run_command
from recipe.errors import UserError
from recipe.networks import get_network
from recipe.options import MAX_SEED, NETWORK, DataOptions, DeviceOptions
from recipe.recipes import Recipe, get_recipe

BASE = get_recipe("net10040", "tuned")  # trials change this recipe
KEPT = ("final", "val_loss", "train_loss", "tta", "seconds")  # of what a seed measures


@dataclass(frozen=True)
class TuningOptions(record.PublishOptions, DeviceOptions, DataOptions):
    """Train one trial on the hold-out, seed by seed."""

    network: Annotated[str, optional(NETWORK, "net10040")] = "net10040"
    """Which network to try; python -m torch_impl.train --help says how to list layers."""
    changes: Annotated[tuple[str, ...], optional("KEY=VALUE ...")] = ()
    """Changes to net10040's recipe `tuned`, such as batch=32 ema_decay=None."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train. With --publish, those on record are not trained again."""


def parse_changes(changes: tuple[str, ...]) -> Recipe:
    """`BASE` with some fields changed.

    Raises:
        UserError: a change names no field or gives no value.
    """
    fields = {field.name for field in dataclasses.fields(Recipe)} - {"name"}
    values: dict[str, Any] = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in fields:
            raise UserError(
                f"--changes {change}: a recipe has no {name!r}; it has {', '.join(sorted(fields))}"
            )
        try:
            parsed = json.loads({"None": "null", "True": "true", "False": "false"}.get(value, value))
        except ValueError:
            raise UserError(f"--changes {change}: {value!r} is no number, True, False or None") from None
        number = type(parsed) is int and isinstance(getattr(BASE, name), float)
        values[name] = float(parsed) if number else parsed  # so that 12 and 12.0 are one trial on record
    return dataclasses.replace(BASE, **values)


def describe_changes(recipe: Recipe) -> str:
    """How a recipe differs from `BASE`, as the command line has it."""
    base = dataclasses.asdict(BASE)
    return " ".join(
        f"{key}={value}" for key, value in dataclasses.asdict(recipe).items() if value != base[key]
    )


def main(options: TuningOptions) -> None:
    """Train the trial's seeds and print and record what each gives."""
    for seed in options.seeds:
        check_range("--seeds", seed, 0, MAX_SEED)
    network, recipe = get_network(options.network), parse_changes(options.changes)
    framework = load_framework("torch")
    loaded = data.load(options.dataset, options.data_dir, framework.read_mnist)
    if loaded.note:
        report.show_notice(loaded.note)
    options.check_publishable(loaded.dataset.name)
    trial = {
        "network": network.name,
        "parameters": network.parameter_count,
        "changes": describe_changes(recipe),
        "framework": framework.name,
        "dataset": loaded.dataset.name,
        "split": "holdout",
    }
    report.show_line(
        f"{network.name}: {network.parameter_count:,} parameters, {trial['changes'] or 'unchanged'}"
    )
    split = data.split(loaded.dataset, "holdout")
    for seed in options.seeds:
        if options.publish and record.read_rows("tuning", record.RESULTS, **trial, seed=seed):
            report.show_line(f"seed {seed} is on record in results/ and was not trained")
            continue
        row = train_seed(framework, network, recipe, split, seed, options.device)
        record.add_rows(
            "tuning",
            [trial | {"seed": seed} | {key: row[key] for key in KEPT}],
            framework.packages,
            options.publish,
        )
        report.show_line(
            f"seed {seed}: {100 * row['final']:.2f} %, loss {row['val_loss']:.4f} (training "
            f"{row['train_loss']:.4f}), with test-time augmentation {100 * row['tta']:.2f} %"
        )


if __name__ == "__main__":
    run_command(TuningOptions, main, "python -m benchmarks.accuracy.tuning")
