"""Many fresh processes in alternating order, and what their latencies come to."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference_engines import Job
from recipe import report
from recipe.errors import UserError

TIMEOUT_S = 900
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    label: str
    engine: str  # a key of `inference_engines.ENGINES`
    model: Path
    checkpoint: Path
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What holds for all contenders."""

    batches: tuple[int, ...]  # ascending
    threads: tuple[int, ...]
    rounds: int  # processes for each contender and number of threads
    seconds: float  # of timing for each batch size in each process
    warm_seconds: float  # at most, of warm-up for each


@dataclass
class Cell:
    """A contender at a number of threads and a batch size."""

    latencies: list[np.ndarray] = field(default_factory=list)  # int64 nanoseconds, one array a round
    stable: bool = True  # every warm-up ended in time

    @property
    def medians(self) -> np.ndarray:
        """The median latency of each round, nanoseconds."""
        return np.array([np.median(each) for each in self.latencies])

    def summary(self, batch: int) -> dict[str, Any]:
        """Over all calls of all rounds; times in microseconds."""
        calls = np.concatenate(self.latencies)
        return {
            "calls": len(calls),
            **{f"p{p}_us": float(np.percentile(calls, p)) / 1e3 for p in PERCENTILES},
            "max_us": float(calls.max()) / 1e3,
            "images_per_second": batch * 1e9 / float(calls.mean()),
            "round_medians_us": [round(median / 1e3, 3) for median in self.medians],
            "stable": self.stable,
        }


@dataclass
class Measurement:
    """All that a contender's processes found."""

    contender: Contender
    cells: dict[tuple[int, int], Cell] = field(default_factory=dict)  # by threads and batch
    import_ns: list[int] = field(default_factory=list)
    load_ns: list[int] = field(default_factory=list)
    first_run_ns: list[int] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    logits: np.ndarray | None = None  # float32 (N, 10), of all images
    failure: str | None = None  # why there are no more processes of it

    @property
    def cold_start(self) -> dict[str, float]:
        """Medians over the processes, of the first run the largest too: later ones may find a warm cache."""
        return {
            "import_ms": float(np.median(self.import_ns)) / 1e6,
            "load_ms": float(np.median(self.load_ns)) / 1e6,
            "first_run_ms": float(np.median(self.first_run_ns)) / 1e6,
            "first_run_max_ms": max(self.first_run_ns) / 1e6,
            "peak_mib": max(self.peak_bytes) / 2**20,
        }


@dataclass
class Limits:
    """What no engine can be faster than."""

    flops_per_second: dict[int, float]  # by threads: float32 matrix product on the same cores
    pinned: bool = False  # processes were kept to as many processors as they have threads


def measure(
    contenders: Sequence[Contender], images: np.ndarray, settings: Settings
) -> tuple[list[Measurement], Limits]:
    """Time all contenders, round by round, every other round in reverse order.

    Args:
        contenders: of which the first must work; another that fails is left out of further rounds.
        images: float32 (N, 1, 28, 28) in 0..1; the first of each batch are timed and all are classified.

    Raises:
        UserError: the first contender fails, or no matrix product can be timed.
    """
    measurements = [Measurement(contender) for contender in contenders]
    rates: dict[int, list[float]] = {threads: [] for threads in settings.threads}
    pinned = True
    with tempfile.TemporaryDirectory(prefix="lockstep-") as name, report.make_progress() as progress:
        folder = Path(name)
        np.save(folder / "images.npy", images, allow_pickle=False)
        total = settings.rounds * len(settings.threads) * (1 + len(contenders))
        bar = progress.add_task("timing", total=total)
        for turn in range(settings.rounds):
            order = [(threads, m) for threads in settings.threads for m in [None, *measurements]]
            for threads, measurement in order if turn % 2 == 0 else reversed(order):
                label = measurement.contender.label if measurement else "matrix product"
                progress.update(bar, description=f"round {turn + 1}, {threads} threads, {label}")
                if measurement is None:
                    result, _ = _run(_matmul_task(threads, settings), folder)
                    rates[threads].append(max(result["flops_per_second"].values()))
                    pinned &= result["pinned"]
                elif measurement.failure is None:
                    _run_contender(measurement, threads, settings, folder)
                    if measurement.failure and measurement is measurements[0]:
                        raise UserError(f"{label} does not run here: {measurement.failure}")
                progress.advance(bar)
    return measurements, Limits({threads: max(found) for threads, found in rates.items()}, pinned)


def _run_contender(measurement: Measurement, threads: int, settings: Settings, folder: Path) -> None:
    contender = measurement.contender
    job = Job(
        engine=contender.engine,
        device=contender.device,
        threads=threads,
        model=str(contender.model.resolve()),
        checkpoint=str(contender.checkpoint.resolve()),
        options=contender.options,
    )
    task = _task(asdict(job), settings) | {"classify": measurement.logits is None}
    try:
        result, arrays = _run(task, folder)
    except WorkerError as error:
        measurement.failure = str(error)
        return
    for batch in settings.batches:
        cell = measurement.cells.setdefault((threads, batch), Cell())
        cell.latencies.append(arrays[f"latencies_{batch}"])
        cell.stable &= result["stable"][str(batch)]
    for name in ("import_ns", "load_ns", "first_run_ns", "peak_bytes"):
        getattr(measurement, name).append(result[name])
    if "logits" in arrays:
        measurement.logits = arrays["logits"]


def _matmul_task(threads: int, settings: Settings) -> dict[str, Any]:
    return _task({"engine": "matmul", "device": "cpu", "threads": threads}, settings)


def _task(job: dict[str, Any], settings: Settings) -> dict[str, Any]:
    return {
        "job": job,
        "batches": list(settings.batches),
        "duration_ns": int(settings.seconds * 1e9),
        "warm_ns": int(settings.warm_seconds * 1e9),
    }


class WorkerError(UserError):
    """A worker process failed; the message is its last word."""


def _run(task: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    path = folder / "task.json"
    path.write_text(json.dumps(task | {"images": str(folder / "images.npy")}))
    command = [sys.executable, "-m", "benchmarks.inference_worker", str(path)]
    environment = _environment(task["job"]["threads"], task["job"]["device"], folder)
    try:
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise WorkerError(f"no end after {TIMEOUT_S} s") from None
    if answer.returncode:
        last = next((line for line in reversed(answer.stderr.splitlines()) if line.strip()), "")
        raise WorkerError(last.strip() or f"exit code {answer.returncode}")
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(path.with_suffix(".result.json").read_text()), arrays


def _environment(threads: int, device: str, folder: Path) -> dict[str, str]:
    """A worker's environment: the number of threads, one kind of device, and caches that start empty."""
    environment = dict(os.environ)
    environment.pop("TORCHDYNAMO_DISABLE", None)  # or torch.compile would silently be eager
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    environment |= {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_PLATFORMS": device,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # or peak memory would be most of the GPU's
    }
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment
