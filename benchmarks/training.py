"""Training speed against two hand-written scripts: ``python -m benchmarks.training --help``."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from benchmarks.machine import describe_machine
from benchmarks.training_contenders import SCRIPTED, with_batch
from benchmarks.training_report import draw, show_batches, show_steps, show_time_to_target
from benchmarks.training_runs import KINDS, measure_batches, measure_steps, measure_time_to_target
from benchmarks.training_workers import workers_environment
from recipe import data, report
from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.options import MAX_BATCH, PRECISIONS, check_choice, check_range, choice, run_command
from recipe.recipes import RECIPES, Recipe, get_recipe
from torch_impl.data import read_mnist


@dataclass(frozen=True)
class TrainingOptions:
    """Time training steps and epochs in both frameworks against scripts as people write them."""

    network: Annotated[str, choice(*SCRIPTED, "both")] = "both"
    """Which network."""
    recipe: Annotated[str, choice(*RECIPES)] = "reference"
    """Which hyperparameters; the scripts' own are those of `reference`."""
    frameworks: Annotated[str, choice("torch", "jax", "both")] = "both"
    """Which framework, with its script."""
    batch: int | None = None
    """Images per step (the recipe's own if not given)."""
    rounds: int = 7
    """How often each contender is timed, in alternating order."""
    steps: int = 30
    """Steps in one round."""
    epochs: int = 1
    """Whole epochs to time as well."""
    batches: tuple[int, ...] = (64, 128, 512, 2048)
    """Batch sizes for time per image and memory, of the first network."""
    time_to_accuracy: bool = False
    """Also train `tuned` until 99.4 % validation accuracy; minutes per framework and network on a CPU."""
    precision: Annotated[str, choice(*PRECISIONS)] = "float32"
    """Of this project's trainers; the scripts always use float32."""
    device: Annotated[str, choice("cpu", "cuda")] = "cpu"
    """Where to train."""
    dataset: Annotated[str, choice("auto", "mnist", "digits")] = "auto"
    """auto: MNIST if it can be had, else scikit-learn's digits."""
    data_dir: Path | None = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    quick: bool = False
    """About a minute: one network (net10040), 2 rounds of 10 steps, no epochs, no batch sizes."""
    out: Path | None = None
    """Result file [results/training-DEVICE.json; -quick with --quick]; the picture goes beside it."""

    def validate(self) -> None:
        """Check every option that needs no file.

        Raises:
            UserError: naming the first faulty option.
        """
        check_choice("--network", self.network, *SCRIPTED, "both")
        check_choice("--recipe", self.recipe, *RECIPES)
        check_choice("--frameworks", self.frameworks, "torch", "jax", "both")
        check_choice("--precision", self.precision, *PRECISIONS)
        check_choice("--device", self.device, "cpu", "cuda")
        check_choice("--dataset", self.dataset, "auto", "mnist", "digits")
        check_range("--batch", self.batch, 1, MAX_BATCH)
        check_range("--rounds", self.rounds, 1, 1000)
        check_range("--steps", self.steps, 1, 10_000)
        check_range("--epochs", self.epochs, 0, 100)
        for batch in self.batches:
            check_range("--batches", batch, 1, MAX_BATCH)
        if self.out and self.out.suffix != ".json":
            raise UserError(f"--out {self.out} must end in .json; the picture goes beside it")

    def recipes(self) -> dict[str, Recipe]:
        """The recipe of each network to be measured."""
        networks = [*SCRIPTED] if self.network == "both" else [self.network]
        return {name: with_batch(get_recipe(name, self.recipe), self.batch) for name in networks}


def main(options: TrainingOptions) -> None:
    """Measure as the command line says, show it, and write the result and the picture."""
    options.validate()
    name = f"training-{options.device}"
    if options.quick:
        network = "net10040" if options.network == "both" else options.network
        options = replace(options, network=network, rounds=2, steps=10, epochs=0, batches=())
        name += "-quick"
    out = options.out or Path("results") / f"{name}.json"
    loaded = data.load(options.dataset, options.data_dir, read_mnist)
    split = data.split(loaded.dataset, "test")
    for batch in (*options.batches, *(recipe.batch for recipe in options.recipes().values())):
        check_range("a batch of", batch, 1, len(split.train_images))
    if loaded.note:
        report.show_notice(loaded.note)
    compiled = os.environ.get("TORCHDYNAMO_DISABLE") != "1"
    if not compiled:
        report.show_notice("TORCHDYNAMO_DISABLE is set: PyTorch is timed without torch.compile")
    with workers_environment(options.device, fresh_caches=not options.quick):
        figures = measure(options, split)
    result = describe_machine() | {
        "data": {"name": loaded.dataset.name, "fingerprint": loaded.dataset.fingerprint},
        "device": options.device,
        "precision": options.precision,
        "torch_compile": compiled,
        "rounds": options.rounds,
        "steps_in_a_round": options.steps,
        **figures,
    }
    write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(out.with_suffix(".png"), draw(result))
    report.show_line(f"-> {out}")


def measure(options: TrainingOptions, split: data.Split) -> dict[str, Any]:
    """All the measurements asked for, each shown as soon as it is there."""
    kinds = [kind for kind in KINDS if options.frameworks in ("both", kind.split("-")[0])]
    ours = [kind for kind in kinds if not kind.endswith("script")]
    recipes = options.recipes()
    where: dict[str, Any] = {"device": options.device, "precision": options.precision}
    how: dict[str, Any] = {"rounds": options.rounds, "steps": options.steps, "epochs": options.epochs}
    networks, sizes, target = {}, {}, {}
    for network, recipe in recipes.items():
        networks[network] = measure_steps(network, recipe, split, kinds=kinds, **how, **where)
        show_steps(network, networks[network])
    if options.batches:
        network, recipe = next(iter(recipes.items()))
        sizes = measure_batches(network, recipe, split, options.batches, kinds=ours, **where)
        show_batches(sizes)
    if options.time_to_accuracy:
        for network in recipes:
            tuned = get_recipe(network, "tuned")
            target[network] = measure_time_to_target(network, tuned, split, kinds=ours, **where)
            show_time_to_target(target[network])
    return {"networks": networks, "batch_sizes": sizes, "time_to_accuracy": target}


if __name__ == "__main__":
    run_command(TrainingOptions, main, "python -m benchmarks.training")
