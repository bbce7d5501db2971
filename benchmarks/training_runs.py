"""What the training benchmark measures: steps and epochs side by side, batch sizes, time to accuracy."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    **worker_options: Any,
) -> dict[str, Any]:
    """Time steps of all contenders in turn, every other round in reverse order; then whole epochs.

    Before that each takes its first steps, where it compiles, and the same number again to warm up; on a GPU
    all of them at once, since it is the processor that compiles.

    Args:
        network: its name.
        recipe: its batch is everybody's, all else this project's trainers'.
        split: the data.
        kinds: the contenders; a matrix product is added.
        rounds: how often each is timed.
        steps: in one round.
        epochs: whole epochs, of each of this project's; of the scripts one.
        device: cpu or cuda.
        precision: of this project's trainers.
        worker_options: of `Worker`.

    Returns:
        Figures for the result file; times are medians over the rounds, or over the epochs.
    """
    names = [*kinds, "matrix-product"]
    contenders = [Contender(kind, network, recipe, device, precision) for kind in names]
    with ExitStack() as stack, report.make_progress() as progress:
        task = progress.add_task(network, total=len(contenders) * rounds)

        def call(worker: Worker, method: str, *arguments: Any) -> tuple[float, Any]:
            progress.update(task, description=f"{network}, {worker.contender.label}")
            answer = worker.call(method, *arguments)
            progress.advance(task)
            return answer

        at_once = len(contenders) if device == "cuda" else 1
        started = start_workers(stack, contenders, split, steps, at_once, worker_options)
        workers = dict(zip(names, started, strict=True))
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
                if turn == 0 or not name.endswith("script"):
                    epoch_seconds[name].append(workers[name].call("epoch")[0])
        memory = {name: workers[name].memory() for name in kinds}
        build = {name: workers[name].build_seconds for name in kinds}
        first = {name: workers[name].first_seconds for name in kinds}

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
            "compile_s": max(0.0, first[name] - median * steps / 1e3),  # the first call's surplus
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


def start_workers(
    stack: ExitStack,
    contenders: Sequence[Contender],
    split: Split,
    steps: int,
    at_once: int,
    worker_options: dict[str, Any],
) -> list[Worker]:
    """Workers that have compiled and warmed up by taking the steps twice; ``stack`` will close them."""

    def start(contender: Contender) -> Worker:
        worker = stack.enter_context(Worker(contender, split, **worker_options))
        worker.first_seconds = worker.call("take", steps)[0]
        worker.call("take", steps)
        return worker

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(start, contenders))


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
    **worker_options: Any,
) -> dict[str, dict[str, Any]]:
    """Time per image and peak memory by batch size, each in a fresh process: ``{kind: {batch: ...}}``."""
    found: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    sizes = list(batches)
    with report.make_progress() as progress:
        task = progress.add_task("batch sizes", total=len(sizes) * len(kinds))
        for batch in sizes:
            steps = max(2, images // batch)
            sized = with_batch(recipe, batch)
            contenders = [Contender(kind, network, sized, device, precision) for kind in kinds]
            # On a GPU all compile at once; on a processor they would be in each other's way.
            groups = [contenders] if device == "cuda" else [[contender] for contender in contenders]
            for group in groups:
                progress.update(task, description=f"batch {batch}")
                with ExitStack() as stack:
                    for worker in start_workers(stack, group, split, steps, len(group), worker_options):
                        seconds = [worker.call("take", steps)[0] for _ in range(calls)]
                        median = float(np.median(seconds))
                        found[worker.contender.kind][str(batch)] = {
                            "step_ms": 1e3 * median / steps,
                            "us_per_image": 1e6 * median / steps / batch,
                            "calls_us_per_image": [1e6 * each / steps / batch for each in seconds],
                            "memory_before_training": worker.memory_at_start,
                            "peak_memory": worker.memory(),
                            "build_s": worker.build_seconds,
                            "compile_s": max(0.0, worker.first_seconds - median),
                        }
                        progress.advance(task)
    return found


def measure_time_to_target(
    network: str,
    recipe: Recipe,
    split: Split,
    *,
    schedules: Sequence[int] = (),
    kinds: Sequence[str] = ("torch", "jax"),
    device: str = "cpu",
    precision: str = "float32",
    **worker_options: Any,
) -> dict[str, Any]:
    """Train each framework until 99.4 % validation accuracy: ``{kind: [...]}``.

    One result for each length of the schedule, in epochs; the recipe's own if none is given.
    """
    found: dict[str, Any] = {"recipe": asdict(recipe)}
    patience: dict[str, Any] = {"timeout_s": 7200.0} | worker_options  # one call trains for all epochs
    for kind in kinds:
        contender = Contender(kind, network, recipe, device, precision)
        with Worker(contender, split, **patience) as worker:
            lengths = schedules or [recipe.epochs]
            found[kind] = [worker.call("time_to_target", epochs)[1] for epochs in lengths]
    return found
