"""Accuracy over many seeds in both frameworks: ``python -m benchmarks.seeds --help``."""

import dataclasses
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from filelock import FileLock
from rich.table import Table

import jax_impl.train
import torch_impl.train
from benchmarks.equivalence import compare_pairs, describe_equivalence
from benchmarks.machine import describe_machine, processor_name
from benchmarks.seeds_together import train_seeds_together
from benchmarks.shifts import shifted_accuracy
from benchmarks.training_contenders import LABELS
from recipe import data, report
from recipe.checkpoint import FILE_NAME, Checkpoint, load_checkpoint
from recipe.curves import encode_png
from recipe.data import Split
from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.networks import NETWORKS, Network, get_network
from recipe.options import TrainOptions, check_choice, check_range, choice, optional, run_command
from recipe.plan import steps_per_epoch
from recipe.recipes import RECIPES, Recipe
from recipe.run import Framework, train

FRAMEWORKS = {"torch": torch_impl.train.FRAMEWORK, "jax": jax_impl.train.FRAMEWORK}
MARGIN = 0.05  # percentage points of mean accuracy that count as no difference


@dataclass(frozen=True)
class SeedsOptions:
    """Train many seeds in both frameworks and compare their final accuracies."""

    network: Annotated[str, choice(*NETWORKS)] = "net10040"
    """Which network."""
    recipe: Annotated[str, choice(*RECIPES)] = "tuned"
    """Which hyperparameters."""
    seeds: int = 5
    """How many seeds, from 0 on; those that the result file has already are not trained again."""
    framework: Annotated[str, choice("torch", "jax", "both")] = "both"
    """Which framework."""
    epochs: Annotated[int | None, optional("INT")] = None
    """Length of the schedule (the recipe's own if not given)."""
    dataset: Annotated[str, choice("auto", "mnist", "digits")] = "auto"
    """auto: MNIST if it can be had, else scikit-learn's digits."""
    data_dir: Annotated[Path | None, optional("DIR")] = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    device: Annotated[str, choice("auto", "cpu", "cuda")] = "auto"
    """auto: the GPU if there is one."""
    runs: Path = Path("runs/seeds")
    """Where the run folders go; a run that was stopped goes on from there."""
    out: Annotated[Path | None, optional("FILE")] = None
    """Result file [results/seeds-NETWORK-RECIPE.json]; the picture goes beside it."""

    def validate(self) -> None:
        """Check every option that needs no file.

        Raises:
            UserError: naming the first faulty option.
        """
        check_choice("--framework", self.framework, *FRAMEWORKS, "both")
        check_range("--seeds", self.seeds, 1, 10_000)
        self.training("torch", 0).validate()
        if self.out and self.out.suffix != ".json":
            raise UserError(f"--out {self.out} must end in .json; the picture goes beside it")

    def training(self, framework: str, seed: int) -> TrainOptions:
        """The options of one seed's run."""
        out = self.runs / f"{framework}-{self.network}-{self.recipe}-{seed}"
        checkpoint = out / FILE_NAME
        return TrainOptions(
            network=self.network,
            recipe=self.recipe,
            epochs=self.epochs,
            seed=seed,
            dataset=self.dataset,
            data_dir=self.data_dir,
            device=self.device,
            out=out,
            resume=checkpoint if checkpoint.exists() else None,
        )


def on_gpu(device: str) -> bool:
    """Whether ``--device`` means a GPU, which trains all seeds at once; a CPU one after another."""
    return torch_impl.train.select_device(device).type == "cuda"


def train_together(
    kind: str, network: Network, recipe: Recipe, split: Split, seeds: list[int], device: str
) -> list[tuple[int, dict[str, Any]]]:
    """Train all seeds at once, in a process of their own, which gives the GPU's memory back at its end."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = pool.submit(train_seeds_together, kind, network, recipe, split, seeds, device).result()
    return list(found.items())


def train_seed(options: TrainOptions, framework: Framework, split: Split) -> dict[str, Any]:
    """Train one seed to its end, or go on where it stopped, and sum it up; see `summarise_run`."""
    recipe = options.resolved_recipe()
    last = recipe.epochs * steps_per_epoch(recipe, len(split.train_images))
    if options.resume is None or load_checkpoint(options.resume).step < last:
        train(options, framework)
    assert options.out is not None
    checkpoint = load_checkpoint(options.out / FILE_NAME)
    if checkpoint.config["recipe"] != dataclasses.asdict(recipe):
        raise UserError(f"{options.out} holds a run of another version of the recipe; remove it")
    return summarise_run(checkpoint, framework, recipe, split)


def summarise_run(
    checkpoint: Checkpoint, framework: Framework, recipe: Recipe, split: Split
) -> dict[str, Any]:
    """Final and best accuracy (0 to 1), and the final one with test-time averaging over shifts.

    ``processor`` is this machine's, where the run ended.
    """
    accuracies = [entry["val_accuracy"] for entry in checkpoint.metrics]
    network, precision = checkpoint.network, checkpoint.config["precision"]
    return {
        "final": accuracies[-1],
        "best": max(accuracies),
        "best_epoch": 1 + int(np.argmax(accuracies)),
        "shifted": shifted_accuracy(framework, network, recipe, split, checkpoint.tensors, precision),
        "val_loss": checkpoint.metrics[-1]["val_loss"],
        "seconds": round(sum(entry["seconds"] for entry in checkpoint.metrics), 1),
        "device": checkpoint.config["device"],
        "processor": processor_name(),
        "accuracies": accuracies,
    }


def summarise(seeds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and minimum over one framework's seeds, in percent."""
    final = 100 * np.array([seed["final"] for seed in seeds.values()])
    return {
        "seeds": len(final),
        "mean": float(final.mean()),
        "deviation": float(final.std(ddof=1)) if len(final) > 1 else None,
        "minimum": float(final.min()),
        "maximum": float(final.max()),
        "mean_best": 100 * float(np.mean([seed["best"] for seed in seeds.values()])),
        "mean_shifted": 100 * float(np.mean([seed["shifted"] for seed in seeds.values()])),
    }


def compare(torch: dict[str, dict[str, Any]], jax: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The equivalence test over the seeds that both frameworks have, in percentage points, PyTorch - Flax."""
    common = sorted(torch.keys() & jax.keys(), key=int)
    differences = [100 * (torch[seed]["final"] - jax[seed]["final"]) for seed in common]
    return compare_pairs(np.array(differences), MARGIN)


def sum_up(result: dict[str, Any]) -> dict[str, Any]:
    """What follows from the seeds of a result."""
    return {
        "summary": {kind: summarise(result[kind]) for kind in FRAMEWORKS if result[kind]},
        "equivalence": compare(result["torch"], result["jax"]),
    }


def load_result(path: Path, what: dict[str, Any]) -> dict[str, Any]:
    """The result so far, empty if there is none.

    Raises:
        UserError: it is no result, or one of other settings.
    """
    empty = what | {"torch": {}, "jax": {}}
    if not path.exists():
        return empty
    try:
        result = json.loads(path.read_text())
        same = all(result[key] == value for key, value in what.items())
        found = empty | {key: dict(result[key]) for key in FRAMEWORKS}
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{path} is no result of benchmarks.seeds; choose another --out") from None
    if not same:
        raise UserError(f"{path} holds seeds of another recipe, schedule or data set; choose another --out")
    return found


def record(
    path: Path, what: dict[str, Any], framework: str, seed: int, found: dict[str, Any]
) -> dict[str, Any]:
    """Add a seed to the result file, which another process may be adding to as well, and sum it up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        result = load_result(path, what)
        seeds = result[framework] | {str(seed): found}
        result[framework] = dict(sorted(seeds.items(), key=lambda item: int(item[0])))
        result |= describe_machine()
        result |= sum_up(result)
        write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
        write_atomically(path.with_suffix(".png"), draw(result))
    return result


def draw(result: dict[str, Any]) -> bytes:
    """Every seed's final accuracy in both frameworks, as PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    kinds = [kind for kind in FRAMEWORKS if result[kind]]
    for place, kind in enumerate(kinds):
        seeds = result[kind]
        final = np.array([100 * seed["final"] for seed in seeds.values()])
        aside = np.linspace(-0.15, 0.15, len(final)) if len(final) > 1 else np.zeros(1)
        axes.plot(place + aside, final, "o", color=f"C{place}")
        for x, y, seed in zip(place + aside, final, seeds, strict=True):
            axes.annotate(seed, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.hlines(final.mean(), place - 0.25, place + 0.25, color=f"C{place}")
    axes.axhline(99.4, ls=":", color="grey", lw=1)
    axes.set_xticks(range(len(kinds)), [f"{LABELS[kind]}, {len(result[kind])} seeds" for kind in kinds])
    axes.set(xlim=(-0.5, len(kinds) - 0.5), ylabel="final accuracy (%)")
    axes.set_title(f"{result['network']}, {result['recipe']['name']}, {result['data']['name']}")
    return encode_png(figure)


def show(result: dict[str, Any]) -> None:
    """The seeds, their means, and whether the frameworks are equivalent, as tables and a sentence."""
    table = Table(title=f"{result['network']}, {result['recipe']['name']}: accuracy in percent")
    for column in ("framework", "seed", "final", "best (epoch)", "with shifts"):
        table.add_column(column, justify="left" if column == "framework" else "right")
    for kind in FRAMEWORKS:
        for seed, found in result[kind].items():
            best = f"{100 * found['best']:.2f} ({found['best_epoch']})"
            final, shifted = (f"{100 * found[key]:.2f}" for key in ("final", "shifted"))
            table.add_row(LABELS[kind], seed, final, best, shifted)
        table.add_section()
    report.console.print(table)
    for kind, found in result["summary"].items():
        spread = "" if found["deviation"] is None else f" +- {found['deviation']:.3f}"
        report.show_line(
            f"{LABELS[kind]:8} {found['seeds']} seeds: mean {found['mean']:.3f}{spread}, minimum "
            f"{found['minimum']:.2f}; best epoch {found['mean_best']:.3f}, "
            f"with shifts {found['mean_shifted']:.3f}"
        )
    report.show_line(describe_equivalence(result["equivalence"]))


def main(options: SeedsOptions) -> None:
    """Train and compare as the command line says."""
    options.validate()
    network, recipe = get_network(options.network), options.training("torch", 0).resolved_recipe()
    loaded = data.load(options.dataset, options.data_dir, torch_impl.train.FRAMEWORK.read_mnist)
    if loaded.note:
        report.show_notice(loaded.note)
    split = data.split(loaded.dataset, "test")
    what = {
        "network": network.name,
        "parameters": network.parameter_count,
        "recipe": dataclasses.asdict(recipe),
        "data": {"name": loaded.dataset.name, "fingerprint": loaded.dataset.fingerprint},
    }
    path = options.out or Path("results") / f"seeds-{network.name}-{recipe.name}.json"
    result = load_result(path, what)
    kinds = [kind for kind in FRAMEWORKS if options.framework in (kind, "both")]
    if on_gpu(options.device):
        for kind in kinds:
            if missing := [seed for seed in range(options.seeds) if str(seed) not in result[kind]]:
                for seed, found in train_together(kind, network, recipe, split, missing, options.device):
                    result = record(path, what, kind, seed, found)
    for seed in range(options.seeds):
        for kind in kinds:
            if str(seed) not in result[kind]:
                found = train_seed(options.training(kind, seed), FRAMEWORKS[kind], split)
                result = record(path, what, kind, seed, found)
    show(result | sum_up(result))
    report.show_line(f"-> {path}")


if __name__ == "__main__":
    run_command(SeedsOptions, main, "python -m benchmarks.seeds")
