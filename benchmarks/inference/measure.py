"""Many processes in alternating order, and the rows of ``inference.jsonl`` that their latencies make."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from benchmarks import workers
from benchmarks.inference.engines import Contender, Engine
from benchmarks.workers import MatrixProduct, Worker, convolution_flops, round_figures
from export.images import Images
from recipe import report
from recipe.errors import UserError
from recipe.networks import Network
from recipe.record import Row


@dataclass(frozen=True)
class Settings:
    """How all contenders are measured."""

    batches: tuple[int, ...]  # ascending
    threads: tuple[int, ...]
    rounds: int  # processes for each contender and number of threads
    seconds: float  # of timing for each batch size in each process


@dataclass
class Measurement:
    """The figures of one contender; lists have one entry for each process."""

    contender: Contender
    latencies: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict)  # by threads and batch
    settled: dict[tuple[int, int], bool] = field(default_factory=dict)  # in every process
    starts_ms: list[list[float]] = field(default_factory=list)  # import, load, first call
    peak_mib: float = 0.0
    logits: np.ndarray | None = None  # float32 (N, 10), of all images
    failure: str | None = None  # why there are no more processes of it


def measure(
    contenders: Sequence[Contender], images: np.ndarray, settings: Settings
) -> tuple[list[Measurement], dict[int, float]]:
    """Time all contenders, every other round in reverse order.

    Args:
        contenders: the first must work; another that fails is left out of further rounds.
        images: float32 (N, 1, 28, 28) in 0..1; all of them are classified, the first of each batch are timed.
        settings: how.

    Returns:
        The measurements, and by number of threads the FLOP/s of a matrix product on the same cores.

    Raises:
        UserError: the first contender or the matrix product fails.
    """
    measurements = [Measurement(contender) for contender in contenders]
    flops: dict[int, list[float]] = {threads: [] for threads in settings.threads}
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder, report.make_progress() as progress:
        total = settings.rounds * len(settings.threads) * len(contenders)
        task = progress.add_task("", total=total)
        for turn in range(settings.rounds):
            order = [(threads, each) for threads in settings.threads for each in measurements]
            for threads, each in order if turn % 2 == 0 else reversed(order):
                environment = _environment(threads, Path(folder))
                if each is measurements[0]:
                    with Worker(
                        "matrix product", MatrixProduct, "cpu", environment=environment, cores=threads
                    ) as worker:
                        flops[threads].append(worker.call("measure"))
                label = f"{each.contender.label}, {report.count(threads, 'thread')}"
                progress.update(task, advance=1, description=label)
                if each.failure is None:
                    try:
                        _measure_process(each, threads, images, settings, environment)
                    except UserError as error:
                        if each is measurements[0]:
                            raise
                        each.failure = str(error)
                        report.show_notice(f"{error}; left out")
    return measurements, {threads: max(values) for threads, values in flops.items()}


def _measure_process(
    measurement: Measurement,
    threads: int,
    images: np.ndarray,
    settings: Settings,
    environment: dict[str, str],
) -> None:
    contender = measurement.contender
    arguments = (contender, threads, images, settings.batches[0])
    with Worker(contender.label, Engine, *arguments, environment=environment, cores=threads) as worker:
        measurement.starts_ms.append(worker.call("start"))
        for batch in settings.batches:
            latencies, settled = worker.call("time_batch", batch, settings.seconds)
            cell = (threads, batch)
            measurement.latencies.setdefault(cell, []).append(latencies)
            measurement.settled[cell] = settled and measurement.settled.get(cell, True)
        measurement.peak_mib = max(measurement.peak_mib, worker.memory())
        if measurement.logits is None:
            measurement.logits = worker.call("logits", settings.batches[-1])


def _environment(threads: int, folder: Path) -> dict[str, str]:
    """The environment of a process: its number of threads, no GPU, and compilers whose caches start empty."""
    return workers.environment("cpu") | {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        "TORCHDYNAMO_DISABLE": "0",  # with 1, torch.compile would compile nothing
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }


def make_rows(
    measurements: Sequence[Measurement], flops: dict[int, float], network: Network, images: Images
) -> list[Row]:
    """One row for each contender, number of threads and batch size; times in microseconds.

    Ratios are to the first contender, round by round, so that what slows the machine for a while slows both.
    """
    first = measurements[0]
    rows = []
    for each in measurements:
        if each.logits is None:  # it failed in its first process
            continue
        about = {"network": network.name, "engine": each.contender.label} | _describe(each, first, images)
        for (threads, batch), rounds in each.latencies.items():
            calls = np.concatenate(rounds)
            ours = np.array([np.median(latencies) for latencies in rounds])
            theirs = np.array([np.median(latencies) for latencies in first.latencies[threads, batch]])
            p50, p90, p99 = np.percentile(calls, (50, 90, 99)) / 1e3
            figures = {
                "threads": threads,
                "batch": batch,
                "calls": len(calls),
                "p50_us": float(p50),
                "p90_us": float(p90),
                "p99_us": float(p99),
                "images_per_second": batch * 1e9 / float(calls.mean()),
                "ratio": float(np.median(ours / theirs[: len(ours)])),
                "settled": each.settled[threads, batch],
                "limit_us": 1e6 * batch * sum(convolution_flops(network)) / flops[threads],
            }
            rows.append(round_figures(about | figures))
    return rows


def _describe(measurement: Measurement, first: Measurement, images: Images) -> Row:
    """A contender's file, start, memory, and how well it classifies."""
    model, logits = measurement.contender.model, measurement.logits
    assert logits is not None
    assert first.logits is not None
    content = model.read_bytes()
    nodes = len(onnx.load_model_from_string(content).graph.node)
    import_ms, load_ms, first_ms = np.median(measurement.starts_ms, 0)
    return {
        "file": model.name,
        "bytes": len(content),
        "nodes": nodes,
        "import_ms": float(import_ms),
        "load_ms": float(load_ms),
        "first_run_ms": float(first_ms),
        "peak_mib": measurement.peak_mib,
        "accuracy": images.accuracy(logits),
        "largest_difference": float(np.abs(logits - first.logits).max()),
        "same_class": int((logits.argmax(1) == first.logits.argmax(1)).sum()),
        "images": len(logits),
    }
