"""One process of the inference benchmark: loads one engine, warms it up and times it.

Started by `benchmarks.inference_runs` as ``python -m benchmarks.inference_worker TASK.json``; leaves
``TASK.result.json`` and ``TASK.npz`` beside the task.
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference_engines import ENGINES, Job, Predict, load_engine

MAX_CALLS, MIN_CALLS = 200_000, 10
WINDOW_NS, TOLERANCE = 30_000_000, 0.03  # of warm-up: three windows in a row with medians this close
MATMUL_SIDE = 1024


def pin(threads: int) -> bool:
    """Let the process use the last ``threads`` of its processors; False where the system cannot do that."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    return True


def peak_bytes() -> int:
    """The process's largest resident memory so far.

    Not ``getrusage``, whose figure on Linux includes the parent's from before the exec.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def warm_up(call: Callable[[], object], limit_ns: int) -> bool:
    """Call until three windows have about the same median; False if that took longer than the limit."""
    medians: list[float] = []
    end = time.perf_counter_ns() + limit_ns
    while time.perf_counter_ns() < end:
        medians.append(float(np.median(time_calls(call, WINDOW_NS, minimum=5))))
        last = medians[-3:]
        if len(last) == 3 and max(last) <= min(last) * (1 + TOLERANCE):
            return True
    return False


def time_calls(call: Callable[[], object], duration_ns: int, minimum: int = MIN_CALLS) -> np.ndarray:
    """Latency of each call in nanoseconds, int64, for that long but at least ``minimum`` calls."""
    clock = time.perf_counter_ns
    latencies: list[int] = []
    end = clock() + duration_ns
    gc.disable()
    try:
        while True:
            start = clock()
            call()
            stop = clock()
            latencies.append(stop - start)
            if len(latencies) >= MAX_CALLS or (stop >= end and len(latencies) >= minimum):
                return np.array(latencies, np.int64)
    finally:
        gc.enable()


def predict_all(predict: Predict, images: np.ndarray, batch: int) -> np.ndarray:
    """Logits of all images by calls of exactly ``batch``; the last one is filled up with first images."""
    padded = np.resize(images, (-(-len(images) // batch) * batch, *images.shape[1:]))
    # Copied: an engine may give its own buffer, which the next call overwrites.
    logits = [np.array(predict(padded[at : at + batch])) for at in range(0, len(padded), batch)]
    return np.concatenate(logits)[: len(images)]


def run_engine(task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Import, load, run for the first time, warm up and time every batch size; then classify all images."""
    job = Job(**task["job"])
    images = np.load(task["images"], allow_pickle=False)
    start = time.perf_counter_ns()
    for module in ENGINES[job.engine].modules:
        importlib.import_module(module)
    imported = time.perf_counter_ns()
    with ExitStack() as stack:
        predict = load_engine(job, stack)
        loaded = time.perf_counter_ns()
        first = np.ascontiguousarray(images[: task["batches"][0]])
        predict(first)
        result: dict[str, Any] = {
            "import_ns": imported - start,
            "load_ns": loaded - imported,
            "first_run_ns": time.perf_counter_ns() - loaded,
            "stable": {},
        }
        arrays = {}
        for batch in task["batches"]:
            some = np.ascontiguousarray(np.resize(images, (batch, *images.shape[1:])))
            predict(some)  # may compile, which is no part of the warm-up
            result["stable"][batch] = warm_up(lambda some=some: predict(some), task["warm_ns"])
            arrays[f"latencies_{batch}"] = time_calls(lambda some=some: predict(some), task["duration_ns"])
        result["peak_bytes"] = peak_bytes()
        if task["classify"]:
            arrays["logits"] = predict_all(predict, images, task["batches"][-1])
    return result, arrays


def run_matmul(task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """How fast these cores multiply float32 matrices: the better of NumPy and PyTorch, in FLOP/s."""
    import torch

    torch.set_num_threads(task["job"]["threads"])
    rng = np.random.default_rng(0)
    a, b = (rng.random((MATMUL_SIDE, MATMUL_SIDE), dtype=np.float32) for _ in range(2))
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    rates = {}
    for name, multiply in (("numpy", lambda: a @ b), ("torch", lambda: ta @ tb)):
        warm_up(multiply, task["warm_ns"])
        rates[name] = 2 * MATMUL_SIDE**3 / float(np.median(time_calls(multiply, task["duration_ns"]))) * 1e9
    return {"flops_per_second": rates}, {}


def main(path: Path) -> None:
    """Do the task in a file."""
    task = json.loads(path.read_text())
    pinned = pin(task["job"]["threads"])
    result, arrays = run_matmul(task) if task["job"]["engine"] == "matmul" else run_engine(task)
    np.savez(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    path.with_suffix(".result.json").write_text(json.dumps(result | {"pinned": pinned}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
