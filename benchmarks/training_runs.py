"""What the training benchmark measures: steps and epochs side by side, batch sizes, time to accuracy."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.training_contenders import Contender, step_flops, with_batch
from benchmarks.training_workers import Worker
from recipe import report
from recipe.data import Split
from recipe.networks import get_network
from recipe.plan import steps_per_epoch
from recipe.recipes import Recipe

KINDS = ("torch-script", "torch", "jax-script", "jax")
COMPILES_EACH_LENGTH = ("jax",)  # one program for an epoch, another for some steps
IMAGES_PER_CALL = 2560  # in the comparison of batch sizes


def measure_steps(
    network: str,
    recipe: Recipe,
    split: Split,
    *,
    kinds: Sequence[str] = KINDS,
    rounds: int = 7,
    steps: int = 30,
    epochs: int = 1,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, Any]:
    """Time steps of all contenders in turn, every other round in reverse order; then whole epochs.

    Before that each takes its first steps, where it compiles, and the same number again to warm up.

    Returns:
        Figures for the result file; times are medians over the rounds, or over the epochs.
    """
    names = [*kinds, "matrix-product"]
    contenders = [Contender(kind, network, recipe, device, precision) for kind in names]
    with ExitStack() as stack, report.make_progress() as progress:
        task = progress.add_task(network, total=len(contenders) * (2 + rounds + epochs))

        def call(worker: Worker, method: str, *arguments: Any) -> tuple[float, Any]:
            progress.update(task, description=f"{network}, {worker.contender.label}")
            answer = worker.call(method, *arguments)
            progress.advance(task)
            return answer

        workers: dict[str, Worker] = {}
        first: dict[str, float] = {}
        for contender in contenders:
            workers[contender.kind] = worker = stack.enter_context(Worker(contender, split))
            first[contender.kind] = call(worker, "take", steps)[0]
            call(worker, "take", steps)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        rates: list[float] = []
        for turn in range(rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                taken, rate = call(workers[name], "take", steps)
                seconds[name].append(taken)
                if name == "matrix-product":
                    rates.append(rate)
        epoch_seconds: dict[str, list[float]] = {name: [] for name in kinds}
        if epochs:
            for name in set(kinds) & set(COMPILES_EACH_LENGTH):
                workers[name].call("epoch")
        for turn in range(epochs):
            for name in kinds if turn % 2 == 0 else reversed(kinds):
                epoch_seconds[name].append(call(workers[name], "epoch")[0])
        memory = {name: workers[name].memory() for name in kinds}
        build = {name: workers[name].build_seconds for name in kinds}

    flops = step_flops(get_network(network), recipe.batch)
    limit_ms = 1e3 * flops / float(np.median(rates))
    table: dict[str, Any] = {}
    for name in kinds:
        step_ms = [1e3 * each / steps for each in seconds[name]]
        median = float(np.median(step_ms))
        table[name] = {
            "step_ms": {"median": median, "min": min(step_ms), "max": max(step_ms), "rounds": step_ms},
            "images_per_second": 1e3 * recipe.batch / median,
            "times_limit": median / limit_ms,
            "epoch_s": float(np.median(epoch_seconds[name])) if epochs else None,
            "epochs_s": epoch_seconds[name],
            "build_s": build[name],  # imports, data to the device
            "compile_s": max(0.0, first[name] - median * steps / 1e3),
            "memory": memory[name],
        }
    return {
        "recipe": asdict(recipe),
        "steps_per_epoch": steps_per_epoch(recipe, len(split.train_images)),
        "step_flops": flops,
        "matrix_flops_per_second": {"median": float(np.median(rates)), "rounds": rates},
        "limit_ms": limit_ms,
        "contenders": table,
        "speedups": compare(table),
    }


def compare(table: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Step times as ratios: each framework's script over ours, and Flax over PyTorch.

    The median is that of the medians; lowest and highest are over pairs of the same round.
    """
    pairs = {
        "torch": ("torch-script", "torch"),
        "jax": ("jax-script", "jax"),
        "jax_over_torch": ("jax", "torch"),
    }
    ratios = {}
    for name, (above, below) in pairs.items():
        if above in table and below in table:
            ours, theirs = (table[each]["step_ms"] for each in (below, above))
            paired = np.array(theirs["rounds"]) / np.array(ours["rounds"])
            ratios[name] = {
                "median": theirs["median"] / ours["median"],
                "lowest": float(paired.min()),
                "highest": float(paired.max()),
            }
    return ratios


def measure_batches(
    network: str,
    recipe: Recipe,
    split: Split,
    batches: Iterable[int],
    *,
    kinds: Sequence[str] = ("torch", "jax"),
    calls: int = 3,
    images: int = IMAGES_PER_CALL,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, dict[str, Any]]:
    """Time per image and peak memory by batch size, each in a fresh process: ``{kind: {batch: ...}}``."""
    found: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    sizes = list(batches)
    with report.make_progress() as progress:
        task = progress.add_task("batch sizes", total=len(sizes) * len(kinds))
        for batch in sizes:
            for kind in kinds:
                contender = Contender(kind, network, with_batch(recipe, batch), device, precision)
                progress.update(task, description=f"batch {batch}, {contender.label}")
                steps = max(2, images // batch)
                with Worker(contender, split) as worker:
                    at_start = worker.memory()
                    first = worker.call("take", steps)[0]
                    seconds = [worker.call("take", steps)[0] for _ in range(calls)]
                    peak = worker.memory()
                median = float(np.median(seconds))
                found[kind][str(batch)] = {
                    "step_ms": 1e3 * median / steps,
                    "us_per_image": 1e6 * median / steps / batch,
                    "calls_us_per_image": [1e6 * each / steps / batch for each in seconds],
                    "memory_before_training": at_start,
                    "peak_memory": peak,
                    "build_s": worker.build_seconds,
                    "compile_s": max(0.0, first - median),
                }
                progress.advance(task)
    return found


def measure_time_to_target(
    network: str,
    recipe: Recipe,
    split: Split,
    *,
    kinds: Sequence[str] = ("torch", "jax"),
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, Any]:
    """Train each framework until 99.4 % validation accuracy: ``{kind: ...}``."""
    found = {"recipe": asdict(recipe)}
    for kind in kinds:
        with Worker(Contender(kind, network, recipe, device, precision), split, timeout_s=7200) as worker:
            found[kind] = worker.call("time_to_target")[1]
    return found
