"""What the training benchmark measures. Each function returns rows of ``training.jsonl``."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from benchmarks import workers
from benchmarks.training.contenders import Contender, make
from benchmarks.workers import MatrixProduct, Worker, convolution_flops, round_figures
from recipe import report
from recipe.data import Split
from recipe.networks import get_network
from recipe.record import Row

OPERATIONS = 10  # of a profile are kept
IMAGES = 2560  # in one call, to compare batch sizes


@contextmanager
def start(
    contender: Contender, split: Split, cores: int | None = None, **environment: str
) -> Iterator[Worker]:
    """The contender in a process of its own, whose compilers start with empty caches."""
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            "LOCKSTEP_CACHE": folder,
        }  # JAX's is in ours
        variables = workers.environment(contender.device, cores) | caches | environment
        with Worker(contender.label, make, contender, split, environment=variables, cores=cores) as worker:
            yield worker


def describe(contender: Contender, measure: str) -> Row:
    """The part of a row that says what was measured."""
    return {
        "measure": measure,
        "network": contender.network,
        "recipe": contender.recipe.name,
        "contender": contender.kind,
        "batch": contender.recipe.batch,
        "precision": contender.precision,
        "device": contender.device,
    }


def step_flops(contender: Contender) -> int:
    """Floating-point operations of the convolutions in one training step.

    Each convolution's two gradients take as many as the convolution itself; the first convolution needs only
    the gradient of its weights.
    """
    forward = convolution_flops(get_network(contender.network))
    return contender.recipe.batch * (3 * sum(forward) - forward[0])


def measure_steps(
    contenders: Sequence[Contender], split: Split, rounds: int, steps: int, epochs: int
) -> list[Row]:
    """Time steps of all contenders in turn, every other round in reverse order; then whole epochs.

    Before that each takes the steps twice, to compile and to warm up. Times are medians over the rounds, with
    the lowest and the highest; a speedup's lowest and highest are over pairs of the same round.

    Args:
        contenders: of one network, recipe and device.
        split: the data.
        rounds: how often each is timed.
        steps: in one round.
        epochs: whole epochs to time; of a script at most one.
    """
    device = contenders[0].device
    step_ms: dict[Contender, list[float]] = {each: [] for each in contenders}
    epoch_s: dict[Contender, list[float]] = {each: [] for each in contenders}
    accuracy: dict[Contender, float] = {}
    compile_s: dict[Contender, float] = {}
    flops_per_s: list[float] = []
    with ExitStack() as stack, report.make_progress() as progress:
        task = progress.add_task("", total=(rounds + 1) * len(contenders))
        product = Worker("matrix product", MatrixProduct, device, environment=workers.environment(device))
        stack.enter_context(product)
        processes: dict[Contender, Worker] = {}
        for each in contenders:
            progress.update(task, advance=1, description=f"{each.label} compiles")
            processes[each] = stack.enter_context(start(each, split))
            first = processes[each].time("run_steps", steps)
            compile_s[each] = max(0.0, first - processes[each].time("run_steps", steps))
        for turn in range(rounds):
            flops_per_s.append(product.call("measure"))
            for each in contenders if turn % 2 == 0 else reversed(contenders):
                progress.update(task, advance=1, description=each.label)
                step_ms[each].append(1e3 * processes[each].time("run_steps", steps) / steps)
        for turn in range(epochs):
            for each in contenders:
                progress.update(task, description=f"{each.label}, an epoch")
                if each.is_script and turn == 0:
                    epoch_s[each].append(processes[each].call("run_epoch"))
                elif not each.is_script:
                    if turn == 0 and each.kind == "jax":  # it compiles for each number of steps
                        processes[each].call("run_only_epoch")
                    seconds, accuracy[each] = processes[each].call("run_only_epoch")
                    epoch_s[each].append(seconds)
        peak_mib = {each: processes[each].memory() for each in contenders}

    limit_ms = 1e3 * step_flops(contenders[0]) / float(np.median(flops_per_s))
    by_kind = {(each.kind, each.precision): each for each in contenders}
    rows = []
    for each in contenders:
        median = float(np.median(step_ms[each]))
        row = describe(each, "steps") | {
            "rounds": rounds,
            "steps": steps,
            "step_ms": median,
            "step_ms_low": min(step_ms[each]),
            "step_ms_high": max(step_ms[each]),
            "limit_ms": limit_ms,
            "times_limit": median / limit_ms,
            "epoch_s": float(np.median(epoch_s[each])) if epochs else None,
            "epoch_accuracy": accuracy.get(each),  # after one epoch, on a schedule of one
            "compile_s": compile_s[each],
            "peak_mib": peak_mib[each],
        }
        if script := by_kind.get((f"{each.kind}-script", "float32")):
            ratios = np.array(step_ms[script]) / np.array(step_ms[each])
            row |= {
                "speedup": float(np.median(step_ms[script])) / median,
                "speedup_low": float(ratios.min()),
                "speedup_high": float(ratios.max()),
            }
        rows.append(round_figures(row))
    return rows


def measure_batch(contender: Contender, split: Split, calls: int = 3) -> list[Row]:
    """Time per image and peak memory at the contender's batch size, in a fresh process."""
    batch = contender.recipe.batch
    steps = max(2, IMAGES // batch)
    with start(contender, split) as worker:
        first = worker.time("run_steps", steps)
        warm = worker.time("run_steps", steps)
        seconds = float(np.median([worker.time("run_steps", steps) for _ in range(calls)]))
        row = describe(contender, "batches") | {
            "step_ms": 1e3 * seconds / steps,
            "us_per_image": 1e6 * seconds / steps / batch,
            "start_mib": worker.start_memory,  # with the images, before the first step
            "peak_mib": worker.memory(),
            "compile_s": max(0.0, first - warm),
        }
    return [round_figures(row)]


def measure_profile(contender: Contender, split: Split, steps: int) -> list[Row]:
    """The operations that take longest, and a whole step without the profiler; one row each.

    On a CPU with one core: on several, JAX's convolutions run in threads that its profiler does not see.
    """
    cores = 1 if contender.device == "cpu" else None
    # Without the first, PyTorch's compiled kernels have no names; the second keeps its profiler quiet.
    named = {"TORCHINDUCTOR_CPP_ENABLE_KERNEL_PROFILE": "1", "KINETO_LOG_LEVEL": "5"}
    with start(contender, split, cores, **named) as worker:
        times: dict[str, float] = worker.call("profile", steps)
        whole = 1e3 * worker.time("run_steps", steps) / steps
    shown = {**dict(list(times.items())[:OPERATIONS]), "whole step": whole}
    return [
        round_figures(
            describe(contender, "profile") | {"operation": name, "step_ms": ms, "share": ms / whole}
        )
        for name, ms in shown.items()
    ]


def measure_accuracy(contenders: Sequence[Contender], split: Split, schedule: int, seeds: int) -> list[Row]:
    """Seconds of training until an epoch ends at 99.4 % on the test images, on a schedule of so many epochs.

    Each contender compiles in an epoch of its own; then they take turns, seed by seed. A seed that does not
    get there counts with the whole schedule.
    """
    results: dict[Contender, list[Row]] = {each: [] for each in contenders}
    with ExitStack() as stack, report.make_progress() as progress:
        task = progress.add_task("", total=(seeds + 1) * len(contenders))
        processes: dict[Contender, Worker] = {}
        for each in contenders:
            progress.update(task, advance=1, description=f"{each.label} compiles")
            processes[each] = stack.enter_context(start(each, split))
            processes[each].timeout_s = 7200  # one call trains for all epochs
            processes[each].call("run_only_epoch")
        for seed in range(seeds):
            for each in contenders if seed % 2 == 0 else reversed(contenders):
                progress.update(task, advance=1, description=f"{each.label}, seed {seed}")
                results[each].append(processes[each].call("run_to_target", schedule, seed))
    rows = []
    for each, result in results.items():
        seconds = [run["seconds"] for run in result]
        row = {
            "schedule": schedule,
            "seeds": seeds,
            "reached": sum(run["reached"] for run in result),
            "epochs": float(np.mean([run["epochs"] for run in result])),
            "seconds": float(np.mean(seconds)),
            "seconds_low": min(seconds),
            "seconds_high": max(seconds),
            "best": float(np.mean([run["best"] for run in result])),
        }
        rows.append(round_figures(describe(each, "accuracy") | row))
    return rows
