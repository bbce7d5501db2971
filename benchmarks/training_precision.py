"""What reduced precision costs and brings: ``python -m benchmarks.training_precision --help``."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.training_contenders import LABELS, Contender
from benchmarks.training_runs import start_workers
from benchmarks.training_workers import workers_environment
from recipe import data, report
from recipe.data import Split
from recipe.files import write_atomically
from recipe.networks import NETWORKS
from recipe.options import check_choice, check_range, choice, run_command
from recipe.recipes import get_recipe
from torch_impl.data import read_mnist

PAIR = ("float32", "bfloat16")


@dataclass(frozen=True)
class PrecisionOptions:
    """Train one epoch of `tuned` in float32 and in bfloat16, in both frameworks, and time their steps."""

    network: Annotated[str, choice(*NETWORKS)] = "net10040"
    """Which network."""
    rounds: int = 5
    """How often steps are timed, in alternating order."""
    steps: int = 20
    """Steps in one round."""
    device: Annotated[str, choice("cpu", "cuda")] = "cpu"
    """Where to train."""
    dataset: Annotated[str, choice("auto", "mnist", "digits")] = "auto"
    """auto: MNIST if it can be had, else scikit-learn's digits."""
    data_dir: Path | None = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    out: Path = Path("results/training-precision.json")
    """Result file."""


def measure_precisions(
    network: str,
    split: Split,
    *,
    rounds: int,
    steps: int,
    device: str = "cpu",
    kinds: tuple[str, ...] = ("torch", "jax"),
) -> dict[str, dict[str, Any]]:
    """Step time and accuracy after one epoch on a schedule of one: ``{kind: {precision: ...}}``."""
    recipe = get_recipe(network, "tuned")
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        contenders = [Contender(kind, network, recipe, device, precision) for precision in PAIR]
        with ExitStack() as stack:
            workers = start_workers(stack, contenders, split, steps, 1, {})
            seconds: dict[str, list[float]] = {precision: [] for precision in PAIR}
            for turn in range(rounds):
                for worker in workers if turn % 2 == 0 else reversed(workers):
                    seconds[worker.contender.precision].append(worker.call("take", steps)[0])
            found[kind] = {
                worker.contender.precision: {
                    "step_ms": 1e3 * float(np.median(seconds[worker.contender.precision])) / steps,
                    **worker.call("accuracy_of_an_epoch")[1],
                }
                for worker in workers
            }
    return found


def main(options: PrecisionOptions) -> None:
    """Measure as the command line says."""
    check_choice("--network", options.network, *NETWORKS)
    check_choice("--device", options.device, "cpu", "cuda")
    check_choice("--dataset", options.dataset, "auto", "mnist", "digits")
    check_range("--rounds", options.rounds, 1, 1000)
    check_range("--steps", options.steps, 1, 10_000)
    loaded = data.load(options.dataset, options.data_dir, read_mnist)
    split = data.split(loaded.dataset, "test")
    if loaded.note:
        report.show_notice(loaded.note)
    with workers_environment(options.device, fresh_caches=False):
        found = measure_precisions(
            options.network, split, rounds=options.rounds, steps=options.steps, device=options.device
        )
    for kind, precisions in found.items():
        for precision, figures in precisions.items():
            report.show_line(
                f"{LABELS[kind]:8} {precision:8}  {figures['step_ms']:.2f} ms a step, validation accuracy "
                f"after one epoch {100 * figures['val_accuracy']:.2f} %"
            )
    result = describe_machine() | {
        "network": options.network,
        "recipe": "tuned, one epoch",
        "device": options.device,
        "data": {"name": loaded.dataset.name, "fingerprint": loaded.dataset.fingerprint},
        "found": found,
    }
    write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())
    report.show_line(f"-> {options.out}")


if __name__ == "__main__":
    run_command(PrecisionOptions, main, "python -m benchmarks.training_precision")
