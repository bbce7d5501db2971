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
from recipe.networks import (
    Average,
    AvgPool,
    Conv,
    MaxPool,
    Network,
    Norm,
    Operation,
    Relu,
    build_network,
    get_network,
)
from recipe.options import MAX_SEED, DataOptions, DeviceOptions
from recipe.recipes import Recipe, get_recipe

BASE = get_recipe("net10040", "tuned")  # trials change this recipe
POOLS = {"pool": MaxPool(), "avgpool": AvgPool(), "average": Average()}
KEPT = ("final", "val_loss", "train_loss", "tta", "seconds")  # of what a seed measures


@dataclass(frozen=True)
class TuningOptions(record.PublishOptions, DeviceOptions, DataOptions):
    """Train one trial on the hold-out, seed by seed."""

    network: str = "net10040"
    """A network's name, or a list of layers such as '10 30 10x1 pool 14 14 average 10x1'."""
    changes: Annotated[tuple[str, ...], optional("KEY=VALUE ...")] = ()
    """Changes to net10040's recipe `tuned`, such as batch=32 ema_decay=None."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to train. With --publish, those on record are not trained again."""


def parse_network(text: str) -> Network:
    """The network with that name, or with the layers that the text lists.

    A number is a 3x3 convolution with padding and that many output channels, ``NxK`` one with a K x K
    kernel; batch norm and ReLU follow each but the last. Convolutions with the same letter, such as ``16@a``,
    share their weights. ``pool`` is a 2x2 max pool, ``avgpool`` a 2x2 average pool, ``average`` the global
    average pool.

    Raises:
        UserError: the text is neither.
    """
    words = text.split()
    if len(words) < 2:
        return get_network(text)
    operations: list[Operation] = []
    owners: dict[str, int] = {}  # the number of the first convolution of each letter
    for position, word in enumerate(words):
        if word in POOLS:
            operations.append(POOLS[word])
            continue
        size, _, letter = word.partition("@")
        channels, _, kernel = size.partition("x")
        try:
            side = int(kernel or 3)
            operations.append(Conv(int(channels), side, side // 2, bias=False, shared=owners.get(letter)))
        except ValueError:
            raise UserError(
                f"--network: {word!r} is no layer; give numbers, NxK, N@LETTER, {', '.join(POOLS)}"
            ) from None
        if letter:
            owners.setdefault(letter, sum(isinstance(operation, Conv) for operation in operations))
        if position < max(n for n, other in enumerate(words) if other[0].isdigit()):
            operations += [Norm(), Relu()]
    try:
        return build_network(text, operations)
    except ValueError as error:
        raise UserError(f"--network: {error}") from None


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
            values[name] = json.loads({"None": "null", "True": "true", "False": "false"}.get(value, value))
        except ValueError:
            raise UserError(f"--changes {change}: {value!r} is no number, True, False or None") from None
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
    network, recipe = parse_network(options.network), parse_changes(options.changes)
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
