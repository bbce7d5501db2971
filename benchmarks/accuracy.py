"""Accuracy over several seeds, or a trial on the hold-out: ``python -m benchmarks.accuracy --help``.

With ``--split holdout`` it is a trial: net10040's recipe `tuned` with some changes trains on all but the last
5,000 training images and is judged by these. A trial never sees the test images.
"""

import ast
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any, Literal

import numpy as np
from scipy.special import softmax

from benchmarks.equivalence import MARGIN, compare_frameworks, pairs_needed
from benchmarks.progress import show_progress
from benchmarks.record import BENCH, PublishOptions, Row, add_rows, grouped, newest, read_rows
from benchmarks.tables import LABELS, make_table
from recipe import console, data
from recipe.checkpoint import Tensors, initial_tensors
from recipe.console import UserError, check_range, option, run_command
from recipe.data import GOAL, Dataset
from recipe.networks import NETWORKS, Network, get_network
from recipe.plan import make_plans, steps_per_epoch
from recipe.recipes import RECIPES, Recipe, get_recipe
from recipe.run import MAX_EPOCHS, NETWORK, DataOptions, DeviceOptions, Devices, Trainer

BASE = get_recipe("net10040", "tuned")  # trials change this recipe
TRIAL = ("final", "val_loss", "train_loss", "tta", "seconds")  # what a trial records of a seed
SHIFTS = tuple(product(range(3), repeat=2))  # of test-time augmentation: pixels down and to the right, plus 1

# The frontier: net3542 with other numbers of channels.
FRONTIER = tuple(
    f"{n} avgpool {n}s@a {n}s@b {n}s@a {n}s@b avgpool {n}s@c {n}s@d {n}s@c {n}s@d average 10x1"
    for n in (10, 15, 30)
)

# Single runs that others published, for the frontier's picture: parameters, percent, of which epoch, source.
# Of net10040's run only the log is known.
ELSEWHERE = (
    (697, 99.03, "best of 700 runs", "https://github.com/JoshWarn/Parameter-Efficient-MNIST"),
    (3_762, 99.52, "last", "https://github.com/adilsammar/woolly-of-cv"),
    (4_838, 99.42, "best", "https://github.com/adilsammar/woolly-of-cv"),
    (8_932, 99.50, "best", "https://github.com/The-School-of-AI/era-s6-ram"),
    (9_954, 99.42, "best", "https://github.com/Enamulla577/EVA5-Session4"),
    (10_040, 99.43, "best", None),
)

# What is known of the published run of each network, in percent of the test images. net9954's is
# https://github.com/Enamulla577/EVA5-Session4/blob/main/S4/MNIST_Model.ipynb
PUBLISHED = {
    "net10040": {"their_last": 99.33, "their_five": 99.30, "their_best": "99.43 (17)"},
    "net9954": {"their_last": 99.26, "their_five": 99.32, "their_best": "99.42 (17)"},
}


@dataclass(frozen=True)
class AccuracyOptions(PublishOptions, DeviceOptions, DataOptions):
    """Train several seeds and compare the frameworks' accuracies, or try a recipe on the hold-out."""

    network: str = option(
        "net10040",
        "Which network to train (default: net10040); torch_impl.train --help says how to list layers",
        metavar=NETWORK,
    )
    recipe: str = option("tuned", "Which hyperparameters to use (default: tuned)", metavar="|".join(RECIPES))
    framework: Literal["torch", "jax", "both"] = option(
        "both", "Train in PyTorch, in Flax, or in both (default: both)"
    )
    seeds: int = option(
        5,
        "Number of seeds (default: 5): 0 to SEEDS - 1. With --publish, those on record are not trained again",
    )
    epochs: int | None = option(None, "Length of the schedule (default: the recipe's)")
    split: Literal["test", "holdout"] = option(
        "test", "Judge by the test images or by the last training images (default: test)"
    )
    changes: Sequence[str] = option(
        (),
        "On the hold-out: changes to net10040's recipe tuned, such as batch=32 ema_decay=None",
        type=str,
        nargs="+",
        metavar="FIELD=VALUE",
    )


def parse_changes(changes: Sequence[str]) -> Recipe:
    """`BASE` with some fields changed.

    Raises:
        UserError: a change names no field or gives no value.
    """
    values: dict[str, Any] = {}
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value, old = ast.literal_eval(text), getattr(BASE, name)
        except (SyntaxError, ValueError, AttributeError):
            fields = ", ".join(field.name for field in dataclasses.fields(Recipe)[1:])
            raise UserError(
                f"--changes {change}: give FIELD=VALUE, with one of the fields {fields}"
            ) from None
        # 12 and 12.0 are one trial on record
        values[name] = float(value) if isinstance(old, float) and value is not None else value
    return dataclasses.replace(BASE, **values)


def describe_changes(recipe: Recipe) -> str:
    """How a recipe differs from `BASE`, as --changes has it."""
    pairs = dataclasses.asdict(recipe).items()
    return " ".join(f"{key}={value}" for key, value in pairs if value != getattr(BASE, key))


def load_framework(name: str, device: str) -> tuple[type[Trainer], Devices]:
    """The trainer of ``torch`` or ``jax``, and the device; imported here because that takes seconds."""
    trainer_type = import_module(f"{name}_impl.train").Trainer
    return trainer_type, import_module(f"{name}_impl.devices").select_devices(device)


def train_seed(
    trainer_type: type[Trainer],
    devices: Devices,
    network: Network,
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    advance: Callable[[str], None],
) -> Row:
    """Train one seed in float32 and return what was measured: accuracies 0 to 1, seconds of training.

    ``advance`` gets a line after each epoch.

    Raises:
        UserError: the batch is larger than the training set, or a loss is not finite.
    """
    images = len(dataset.train_images)
    steps = recipe.epochs * steps_per_epoch(recipe, images)
    if steps == 0:
        raise UserError(f"a batch of {recipe.batch} is more than the {images} training images")
    trainer = trainer_type(network, recipe, dataset, devices, "float32")
    trainer.load(initial_tensors(network, recipe, seed, "float32"))
    accuracies: list[float] = []
    seconds = train_loss = val_loss = 0.0
    for plan in make_plans(network, recipe, seed, images, 0, steps):
        began = time.perf_counter()
        losses, _ = trainer.train(plan, lambda _: None)
        seconds += time.perf_counter() - began
        train_loss = float(losses.mean())
        if not np.isfinite(train_loss):
            raise UserError(f"seed {seed} diverged in epoch {len(accuracies) + 1}; use a lower lr")
        val_loss, accuracy = trainer.evaluate()
        accuracies.append(accuracy)
        advance(f"{LABELS[trainer.framework]}, seed {seed}, epoch {len(accuracies)}")
    return {
        "framework": trainer.framework,
        "seed": seed,
        "final": accuracies[-1],
        "best": max(accuracies),
        "best_epoch": 1 + int(np.argmax(accuracies)),
        "tta": tta_accuracy(trainer_type, devices, network, recipe, dataset, trainer.tensors()),
        "val_loss": val_loss,
        "train_loss": train_loss,
        "seconds": round(seconds, 1),
        "accuracies": accuracies,
    }


def tta_accuracy(
    trainer_type: type[Trainer],
    devices: Devices,
    network: Network,
    recipe: Recipe,
    dataset: Dataset,
    tensors: Tensors,
) -> float:
    """Accuracy (0 to 1) by the class probabilities averaged over an image and its eight one-pixel shifts."""
    trainer = trainer_type(network, recipe, shift_validation(dataset), devices, "float32")
    trainer.load(tensors)
    labels = dataset.val_labels
    probabilities = softmax(trainer.predict().reshape(len(SHIFTS), len(labels), -1), axis=-1)
    return float((probabilities.mean(0).argmax(-1) == labels).mean())


def shift_validation(dataset: Dataset) -> Dataset:
    """A dataset with the validation images in the first of `SHIFTS`, then in the second, and so on."""
    height, width = dataset.val_images.shape[1:]
    padded = np.pad(dataset.val_images, ((0, 0), (1, 1), (1, 1)))
    shifted = [
        padded[:, 2 - down : 2 - down + height, 2 - right : 2 - right + width] for down, right in SHIFTS
    ]
    labels = np.tile(dataset.val_labels, len(SHIFTS))
    # A trainer copies the training images to its device and does not use them.
    return dataclasses.replace(
        dataset,
        train_images=dataset.train_images[:1],
        train_labels=dataset.train_labels[:1],
        val_images=np.concatenate(shifted),
        val_labels=labels,
    )


def main(options: AccuracyOptions) -> None:
    """Train, measure and compare as the command line says.

    Raises:
        UserError: a faulty option, data folder or record, or a seed that cannot be trained.
    """
    check_range("--seeds", options.seeds, 1, 10_000)
    check_range("--epochs", options.epochs, 1, MAX_EPOCHS)
    trial = options.split == "holdout"
    if not trial and options.changes:
        raise UserError("--changes needs --split holdout: nothing is chosen by the test images")
    if trial and options.recipe != "tuned":
        raise UserError("--split holdout starts from net10040's tuned; give --changes instead of --recipe")
    network = get_network(options.network)
    recipe = parse_changes(options.changes) if trial else get_recipe(network.name, options.recipe)
    if options.publish and not trial and options.epochs not in (None, recipe.epochs):
        raise UserError("--publish needs the recipe's own schedule; leave out --epochs")
    recipe = dataclasses.replace(recipe, epochs=options.epochs or recipe.epochs)
    frameworks = [name for name in ("torch", "jax") if options.framework in (name, "both")]
    trainers = {name: load_framework(name, options.device) for name in frameworks}
    reader = trainers[frameworks[0]][0].read_mnist
    dataset = data.load(options.dataset, options.data_dir, reader, options.split)
    if dataset.note:
        console.show_notice(dataset.note)
    file = "tuning" if trial else "seeds"
    options.check_record(file, dataset.name)
    what = {"network": network.name, "parameters": network.parameter_count}
    what |= {"changes": describe_changes(recipe), "split": "holdout"} if trial else {"recipe": recipe.name}
    what |= {"dataset": dataset.name}
    console.show_line(
        f"{network.name}, {what.get('changes', recipe.name)}, {console.count(recipe.epochs, 'epoch')}, "
        f"{dataset.name}: accuracy in percent after the last\nepoch, at best (epoch), and with "
        "test-time augmentation (tta)"
    )
    jobs = [(seed, name) for seed in range(options.seeds) for name in frameworks]
    if not trial:
        what["device"] = next(iter(trainers.values()))[1].name
    rows = read_rows(file, **what) if options.publish else []
    known = {(row["seed"], row["framework"]): row for row in rows}
    rows = [known[job] for job in jobs if job in known]
    for row in rows:
        console.show_line(describe_seed(row, "on record, not trained"))
    jobs = [job for job in jobs if job not in known]
    with show_progress(len(jobs) * recipe.epochs) as advance:
        for seed, name in jobs:
            row = train_seed(*trainers[name], network, recipe, dataset, seed, advance)
            kept = {key: row[key] for key in ("framework", "seed", *TRIAL)} if trial else row
            add_rows(file, [what | kept], trainers[name][0].packages, options.publish)
            console.show_line(describe_seed(row, f"{row['seconds']:,.0f} s"))
            rows.append(row)
    for line in summarise(rows):
        console.show_line(line)
    console.show_line(f"-> {'results' if options.publish else BENCH}/{file}.jsonl")


def describe_seed(row: Row, origin: str) -> str:
    """One line on one seed, in percent: at most 80 columns."""
    best = f"best {100 * row['best']:.2f} ({row['best_epoch']})  " if "best" in row else ""
    return (
        f"{LABELS[row['framework']]:8}seed {row['seed']:<3} last {100 * row['final']:.2f}  {best}"
        f"tta {100 * row['tta']:.2f}  {origin}"
    )


def summarise(rows: list[Row]) -> list[str]:
    """Mean, standard deviation and lowest of each framework, and the equivalence test; 80 columns."""
    lines = []
    for group in grouped(rows, "framework"):
        final, tta = (100 * np.array([row[key] for row in group]) for key in ("final", "tta"))
        lines.append(
            f"{LABELS[group[0]['framework']]:8}{console.count(len(final), 'seed')}: mean "
            f"{mean_and_deviation(final, 3)}, lowest {final.min():.2f}; with tta {tta.mean():.3f}"
        )
    if result := compare_frameworks(rows):
        needed = pairs_needed(result.mean, result.std, MARGIN)
        enough = "" if result.equivalent or not needed else f"; {needed} pairs may be enough"
        lines.append(
            f"{'equivalent' if result.equivalent else 'not shown to be equivalent'} within {MARGIN} points, "
            f"p = {result.p:.2g}{enough}\nPyTorch - Flax {result.mean:+.3f} points, 90 % interval "
            f"{result.low:+.3f} to {result.high:+.3f}, {result.pairs} pairs"
        )
    return lines


def mean_and_deviation(values: np.ndarray, digits: int = 2) -> str:
    """The mean and, of several values, the standard deviation."""
    deviation = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"


# ----------------------------------------------------------------------------------------- the page's tables

COMMAND = "benchmarks.accuracy --network NETWORK"


def recorded_seeds(recipe: str, networks: Sequence[str] = tuple(NETWORKS), **where: Any) -> list[Row]:
    """The newest measurement of each seed on MNIST, PyTorch's first; see `read_rows` for ``where``."""
    rows = newest("seeds", "network", "framework", "device", "seed", recipe=recipe, dataset="mnist", **where)
    rows = [row for row in rows if row["network"] in networks]  # the record has former networks, too
    return sorted(
        rows, key=lambda row: (networks.index(row["network"]), row["framework"] == "jax", row["seed"])
    )


def accuracies(recipe: str, networks: Sequence[str] = tuple(NETWORKS), **where: Any) -> list[Row]:
    """The seeds of each network, framework and device summed up, in percent."""
    rows = []
    for group in grouped(recorded_seeds(recipe, networks, **where), "network", "framework", "device"):
        first, final = group[0], 100 * np.array([row["final"] for row in group])
        summary = {
            "rows": group,
            "seeds": len(group),
            "percent": final.mean(),
            "deviation": final.std(ddof=1) if len(final) > 1 else 0.0,
            "label": LABELS[first["framework"]]
            + ("" if first["device"] == "cpu" else f", {first['device']}"),
            "finals": ", ".join(f"{value:.2f}" for value in final),
            "mean": mean_and_deviation(final),
            "lowest": final.min(),
            "last_five": 100 * np.mean([np.mean(row["accuracies"][-5:]) for row in group]),
            "best": f"{100 * first['best']:.2f} ({first['best_epoch']})" if len(group) == 1 else None,
            "tta": 100 * np.mean([row.get("tta", np.nan) for row in group]),
        }
        rows.append(first | PUBLISHED.get(first["network"], {}) | summary)
    return rows


def seeds_table(recipe: str) -> str:
    """Every seed of a recipe."""
    return make_table(
        "network | framework | parameters | last epoch of each seed | mean ± deviation | lowest | tta",
        "`{network}` | {label} | {parameters:,} | {finals} | **{mean}** | {lowest:.2f} | {tta:.2f}",
        accuracies(recipe),
        f"{COMMAND} --recipe {recipe} --seeds SEEDS",
    )


def equivalences() -> list[Row]:
    """The equivalence test of each network, on the CPU."""
    rows = []
    for group in grouped(recorded_seeds("tuned", device="cpu"), "network"):
        if result := compare_frameworks(group):
            needed = pairs_needed(result.mean, result.std, MARGIN)
            verdict = "yes" if result.equivalent else "not shown"
            rows.append(group[0] | result._asdict() | {"verdict": verdict, "needed": needed, "rows": group})
    return rows


def equivalence_table() -> str:
    """Whether the frameworks are equally accurate."""
    return make_table(
        f"network | pairs | PyTorch - Flax | 90 % interval | p | equal within {MARGIN} | pairs needed",
        "`{network}` | {pairs} | {mean:+.3f} | {low:+.3f} to {high:+.3f} | {p:.2g} | {verdict} | {needed}",
        equivalences(),
        f"{COMMAND} --seeds SEEDS",
    )


def reference_table() -> str:
    """The recipe `reference` beside the published runs."""
    return make_table(
        "network | framework | last epoch | published | last five | published | best (epoch) | published",
        "`{network}` | {label} | {mean} | {their_last} | {last_five:.2f} | {their_five:.2f} | {best} "
        "| {their_best}",
        accuracies("reference", device="cpu"),
        f"{COMMAND} --framework torch --recipe reference --seeds 1",
    )


def frontier() -> list[Row]:
    """The recipe `tuned` over seeds on the CPU for every size of network, the smallest first."""
    rows = accuracies("tuned", (*NETWORKS, *FRONTIER), device="cpu")
    return sorted(rows, key=lambda row: row["parameters"])


def frontier_table() -> str:
    """How accurate a network of so many parameters is."""
    return make_table(
        "parameters | network | framework | seeds | last epoch, mean ± deviation | lowest",
        "{parameters:,} | `{network}` | {label} | {seeds} | **{mean}** | {lowest:.2f}",
        frontier(),
        f"{COMMAND} --seeds SEEDS",
    )


def draw_frontier() -> bytes:
    """Parameters and mean accuracies of `frontier`, and single published runs, as PNG bytes."""
    figure, axes = console.subplots(figsize=(8, 4.5))
    for rows in grouped(frontier(), "framework"):  # PyTorch's first, as their colours are
        columns = ([row[key] for row in rows] for key in ("parameters", "percent", "deviation"))
        label = f"{LABELS[rows[0]['framework']]}, mean and deviation over seeds"
        axes.errorbar(*columns, fmt="o", capsize=3, alpha=0.8, label=label)
    for number, (parameters, percent, epoch, _) in enumerate(ELSEWHERE):
        label = None if number else "published, a single run"
        axes.plot(parameters, percent, "o", mfc="none", color="grey", label=label)
        axes.annotate(epoch, (parameters, percent), (4, -10), textcoords="offset points", fontsize=8)
    axes.axhline(100 * GOAL, ls="--", color="grey", lw=1)
    axes.set_xscale("log")
    ticks = [700, 1_000, 2_000, 3_000, 4_000, 6_000, 10_000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="parameters", ylabel="accuracy on the test images (%)")
    axes.legend(loc="lower right")
    return console.encode_png(figure)


def trials_table() -> str:
    """Every trial on the hold-out, over its seeds: by network, the lowest loss first."""
    rows = []
    for group in grouped(newest("tuning", "network", "changes", "framework", "seed"), "network", "changes"):
        means = {key: np.mean([row[key] for row in group]) for key in ("val_loss", "train_loss")}
        final = 100 * np.mean([row["final"] for row in group])
        rows.append(group[0] | means | {"final": final, "rows": group, "seeds": len(group)})
    return make_table(
        "parameters | network | changes | seeds | loss | accuracy | training loss",
        "{parameters:,} | `{network}` | {changes} | {seeds} | {val_loss:.4f} | {final:.2f} "
        "| {train_loss:.4f}",
        sorted(rows, key=lambda row: (row["parameters"], row["network"], row["val_loss"])),
        f"{COMMAND} --framework torch --split holdout --changes CHANGES --seeds SEEDS",
    )


def draw_accuracy() -> bytes:
    """The accuracy of every seed after its last epoch, as PNG bytes."""
    figure, axes = console.subplots(figsize=(8, 4))
    groups = accuracies("tuned", device="cpu")
    for position, row in enumerate(groups):
        final = [100 * seed["final"] for seed in row["rows"]]
        colour = "C0" if row["framework"] == "torch" else "C1"
        axes.plot(position + np.linspace(-0.2, 0.2, len(final)), final, "o", color=colour, alpha=0.7)
        axes.hlines(np.mean(final), position - 0.3, position + 0.3, color=colour)
    axes.axhline(100 * GOAL, ls="--", color="grey", lw=1)
    axes.text(-0.4, 100 * GOAL + 0.005, f"the task: {100 * GOAL:g} %", color="grey")
    axes.set_xticks(range(len(groups)), [f"{row['network']}\n{row['label']}" for row in groups])
    axes.set(ylabel="accuracy after the last epoch (%)")
    return console.encode_png(figure)


def claim() -> str:
    """README's line."""
    shown = (("net9808", "tuned"), ("net3542", "tuned"), ("net17816", "fast"))
    best, small, fast = (accuracies(recipe, device="cpu", network=name)[0] for name, recipe in shown)
    percent = [row["mean"].split()[0] for row in (best, small, fast)]  # PyTorch's
    return (
        f"`net9808` reaches {percent[0]} % on MNIST's test images, `net3542` {percent[1]} %, "
        f"`net17816` {percent[2]} % in {len(fast['rows'][0]['accuracies'])} epochs"
    )


if __name__ == "__main__":
    run_command(AccuracyOptions, main, "python -m benchmarks.accuracy")
