"""Train in both frameworks at once and compare every step: ``python -m benchmarks.lockstep --help``.

Beside the two it trains each framework a second time from initial weights moved by one unit in the last
place. How far a framework strays from itself is the noise floor: no port can be asked to be closer.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.table import Table

import jax_impl.train
import torch_impl.train
from benchmarks.machine import describe_machine
from recipe import data, report
from recipe.checkpoint import Tensors
from recipe.curves import encode_png
from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.networks import NETWORKS, Network, get_network
from recipe.options import check_choice, check_range, choice, optional, run_command
from recipe.plan import make_plan, steps_per_epoch
from recipe.recipes import RECIPES, Recipe, get_recipe
from recipe.run import Trainer, initial_tensors

KINDS = ("gradient", "parameter", "momentum", "statistic", "average")
PAIRS = {"torch-jax": (0, 1), "torch-torch": (0, 2), "jax-jax": (1, 3)}
FLOOR_FROM_STEP = 20  # before it, every pair is still together


@dataclass(frozen=True)
class LockstepOptions:
    """Train one network in PyTorch and Flax at once and compare them at every step."""

    network: Annotated[str, choice(*NETWORKS)] = "net10040"
    """Which network."""
    recipe: Annotated[str, choice(*RECIPES)] = "tuned"
    """Which hyperparameters."""
    steps: int = 100
    """How many steps; the schedule is the recipe's whole one."""
    precision: Annotated[str, choice("float64", "float32")] = "float64"
    """Of weights and arithmetic."""
    seed: int = 0
    """Of initial weights, image order, augmentation and dropout."""
    dataset: Annotated[str, choice("auto", "mnist", "digits")] = "auto"
    """auto: MNIST if it can be had, else scikit-learn's digits."""
    data_dir: Annotated[Path | None, optional("DIR")] = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    device: Annotated[str, choice("auto", "cpu", "cuda")] = "auto"
    """auto: the GPU if there is one."""
    noise_floor: bool = True
    """Train each framework against itself as well, which takes as long again."""
    everything: bool = False
    """Turn on dropout (0.05) and augmentation where the recipe lacks them."""
    out: Annotated[Path | None, optional("FILE")] = None
    """Result file [in results/, named after the rest]; the picture goes beside it."""


@dataclass
class Comparison:
    """Differences between two trainers, step by step."""

    loss: list[float]  # |difference|
    largest: dict[str, list[float]]  # by kind of tensor: largest norm of a difference relative to the norm
    worst: dict[str, str]  # by kind: the tensor that was furthest off at the worst step
    predictions: int = 0  # that differ on the validation images at the end


def nudge(tensors: Tensors) -> Tensors:
    """Move every weight by one unit in the last place; statistics, momentum and averages stay."""
    return {
        name: tensor if "/" in name or "running" in name else np.nextafter(tensor, np.inf, dtype=tensor.dtype)
        for name, tensor in tensors.items()
    }


def kind_of(name: str) -> str:
    """Which of `KINDS` a canonical tensor is of."""
    if "/" in name:
        return name.split("/")[0]
    return "statistic" if "running" in name else "parameter"


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Norm of the difference over the norm of the second; 0 where both are zero."""
    difference, size = np.linalg.norm((ours - theirs).ravel()), np.linalg.norm(theirs.ravel())
    return float(difference / size) if size else (np.inf if difference else 0.0)


def observe(trainer: Trainer) -> dict[str, Tensors]:
    """All tensors of a trainer after a step, by kind."""
    tensors: dict[str, Tensors] = {kind: {} for kind in KINDS}
    tensors["gradient"] = trainer.gradients()
    for name, tensor in trainer.tensors().items():
        tensors[kind_of(name)][name] = tensor
    return tensors


def record(comparison: Comparison, ours: dict[str, Tensors], theirs: dict[str, Tensors]) -> None:
    """Add one step's tensors to a comparison."""
    for kind in KINDS:
        differences = {name: relative_difference(ours[kind][name], theirs[kind][name]) for name in ours[kind]}
        if not differences:
            continue
        name = max(differences, key=lambda name: differences[name])
        earlier = comparison.largest.setdefault(kind, [])
        if not earlier or differences[name] > max(earlier):
            comparison.worst[kind] = name
        earlier.append(differences[name])


def run_lockstep(
    network: Network,
    recipe: Recipe,
    split: data.Split,
    *,
    steps: int,
    precision: str,
    seed: int = 0,
    device: str = "cpu",
    noise_floor: bool = False,
    frameworks: Sequence[Any] = (torch_impl.train.Trainer, jax_impl.train.Trainer),
) -> tuple[np.ndarray, dict[str, Comparison]]:
    """Train side by side for some steps of the recipe's schedule.

    Returns:
        The losses, float64 (trainers, steps), and a comparison for each pair of `PAIRS` that was trained.
    """
    copies = 2 if noise_floor else 1
    trainers: list[Trainer] = [
        make(network, recipe, split, device, precision) for make in [*frameworks] * copies
    ]
    start = initial_tensors(network, recipe, seed, precision)
    for index, trainer in enumerate(trainers):
        trainer.load(start if index < 2 else nudge(start))
    pairs = {name: pair for name, pair in PAIRS.items() if max(pair) < len(trainers)}
    comparisons = {name: Comparison([], {}, {}) for name in pairs}
    images = len(split.train_images)
    per_epoch = steps_per_epoch(recipe, images)
    losses = np.empty((len(trainers), steps))
    with report.make_progress() as progress:
        task = progress.add_task("lockstep", total=steps)
        for first in range(0, steps, per_epoch):
            last = min(steps, first + per_epoch)
            plan = make_plan(network, recipe, seed, images, first, last)
            for step in range(first, last):
                one = plan[step - first : step - first + 1]
                for index, trainer in enumerate(trainers):
                    losses[index, step] = trainer.train(one, lambda _: None)[0][0]
                seen = [observe(trainer) for trainer in trainers]
                for name, (ours, theirs) in pairs.items():
                    comparisons[name].loss.append(abs(losses[ours, step] - losses[theirs, step]))
                    record(comparisons[name], seen[ours], seen[theirs])
                progress.advance(task)
    labels = [trainer.predict().argmax(1) for trainer in trainers]
    for name, (ours, theirs) in pairs.items():
        comparisons[name].predictions = int((labels[ours] != labels[theirs]).sum())
    return losses, comparisons


def summarise(comparison: Comparison) -> dict[str, Any]:
    """The figures of a comparison."""
    loss = np.array(comparison.loss)
    late = loss[FLOOR_FROM_STEP:] if len(loss) > FLOOR_FROM_STEP else loss
    return {
        "worst_loss_difference": float(loss.max()),
        "rms_loss_difference_from_step_20": float(np.sqrt((late**2).mean())),
        "worst_relative_difference": {kind: max(values) for kind, values in comparison.largest.items()},
        "worst_tensor": comparison.worst,
        "differing_predictions": comparison.predictions,
    }


def draw(losses: np.ndarray, comparisons: dict[str, Comparison], title: str) -> bytes:
    """Both loss curves, and below them the differences on a log axis, as PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
    steps = np.arange(1, losses.shape[1] + 1)
    above.plot(steps, losses[0], lw=1.5, label="PyTorch")
    above.plot(steps, losses[1], lw=1.0, ls="--", label="Flax")
    above.set(ylabel="training loss", yscale="log", title=title)
    labels = {
        "torch-jax": "PyTorch and Flax",
        "torch-torch": "PyTorch and itself, one unit in the last place away",
        "jax-jax": "Flax and itself, one unit in the last place away",
    }
    for name, comparison in comparisons.items():
        shown = np.maximum(comparison.loss, 1e-17)  # a difference of zero has no logarithm
        below.plot(steps, shown, lw=1.2 if name == "torch-jax" else 0.8, label=labels[name])
    below.set(xlabel="step", ylabel="|loss difference|", yscale="log")
    above.legend()
    below.legend()
    return encode_png(figure)


def show(comparisons: dict[str, Comparison]) -> None:
    """Print the comparisons as a table."""
    table = Table(title="largest difference over all steps (tensors: norm relative to norm)")
    for heading in ("", *comparisons):
        table.add_column(heading, justify="right" if heading else "left")
    summaries = [summarise(comparison) for comparison in comparisons.values()]
    table.add_row("loss", *(f"{summary['worst_loss_difference']:.1e}" for summary in summaries))
    table.add_row(
        "loss, rms from step 20",
        *(f"{summary['rms_loss_difference_from_step_20']:.1e}" for summary in summaries),
    )
    for kind in KINDS:
        if kind in summaries[0]["worst_relative_difference"]:
            worst = (summary["worst_relative_difference"][kind] for summary in summaries)
            table.add_row(kind, *(f"{difference:.1e}" for difference in worst))
    table.add_row(
        "predictions that differ", *(str(summary["differing_predictions"]) for summary in summaries)
    )
    report.console.print(table)


def main(options: LockstepOptions) -> None:
    """Compare as the command line says, and write the result and the picture."""
    check_choice("--network", options.network, *NETWORKS)
    check_choice("--recipe", options.recipe, *RECIPES)
    check_choice("--precision", options.precision, "float64", "float32")
    check_choice("--dataset", options.dataset, "auto", "mnist", "digits")
    check_choice("--device", options.device, "auto", "cpu", "cuda")
    network, recipe = get_network(options.network), get_recipe(options.network, options.recipe)
    if options.everything:
        recipe = turn_everything_on(recipe)
    loaded = data.load(options.dataset, options.data_dir, torch_impl.train.read_mnist)
    split = data.split(loaded.dataset, "test")
    check_range("--steps", options.steps, 1, steps_per_epoch(recipe, len(split.train_images)) * recipe.epochs)
    check_range("--seed", options.seed, 0, 2**63 - 1)
    if loaded.note:
        report.show_notice(loaded.note)
    name = f"lockstep-{network.name}-{recipe.name}{'-everything' * options.everything}-{options.precision}"
    out = options.out or Path("results") / f"{name}.json"
    if out.suffix != ".json":
        raise UserError(f"--out {out} must end in .json; the picture goes beside it")
    began = time.perf_counter()
    losses, comparisons = run_lockstep(
        network,
        recipe,
        split,
        steps=options.steps,
        precision=options.precision,
        seed=options.seed,
        device=options.device,
        noise_floor=options.noise_floor,
    )
    result = describe_machine() | {
        "network": network.name,
        "recipe": dataclasses.asdict(recipe),
        "precision": options.precision,
        "seed": options.seed,
        "steps": options.steps,
        "data": {"name": loaded.dataset.name, "fingerprint": loaded.dataset.fingerprint},
        "seconds": round(time.perf_counter() - began, 1),
        "pairs": {pair: summarise(comparison) for pair, comparison in comparisons.items()},
        "final_loss": {"torch": losses[0, -1], "jax": losses[1, -1]},
        "losses": {"torch": losses[0].tolist(), "jax": losses[1].tolist()},
    }
    write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
    title = f"{network.name}, {recipe.name}, {options.precision}, {loaded.dataset.name}"
    write_atomically(out.with_suffix(".png"), draw(losses, comparisons, title))
    show(comparisons)
    report.show_line(f"{options.steps} steps of {network.name}, {recipe.name}, {options.precision} -> {out}")


def turn_everything_on(recipe: Recipe) -> Recipe:
    """A recipe with dropout and augmentation, whichever of them it lacks."""
    ranges = {"rotation": 9.0, "shift": 1.5, "scale": 0.07, "shear": 3.0}
    return dataclasses.replace(recipe, dropout=recipe.dropout or 0.05, **({} if recipe.augments else ranges))


if __name__ == "__main__":
    run_command(LockstepOptions, main, "python -m benchmarks.lockstep")
