"""Processes that are timed: each contender of a benchmark lives in one of its own.

PyTorch and JAX are imported only where they are used, and no contender sees the settings of another.
Contenders take turns, so only one of them computes at any time.
"""

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import prod
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.record import Row
from recipe.console import UserError, explain
from recipe.networks import Conv, Network
from recipe.provenance import count_cores, describe_machine

EXIT_S = 3.0  # for a process to end by itself
MAX_CALLS, MIN_CALLS = 200_000, 10
WINDOW_S, WINDOW_CALLS, TOLERANCE = 0.03, 5, 0.03  # warm-up: until three windows have medians this close
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


class Worker:
    """An object in a process of its own; use it in a ``with`` statement.

    Args:
        label: its name in messages.
        make: a function or class that can be imported by name; it makes the object from ``arguments``.
        arguments: sent to the process.
        environment: variables of that process, on top of those here.
        cores: the number of processors that the process may use, where the system can limit them.

    Raises:
        UserError: as in `call`.
    """

    def __init__(
        self,
        label: str,
        make: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] = MappingProxyType({}),
        cores: int | None = None,
    ):
        self.label = label
        context = multiprocessing.get_context("spawn")  # JAX's threads would not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments, cores))
        resource_tracker.ensure_running()  # it would unblock Ctrl-C after the next line
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for us, who end the process
        try:
            with mock.patch.dict(os.environ, environment):  # libraries read it when they are imported
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()

    def wait(self) -> None:
        """Return when the object is made; needed once, before the first call. Raises as `call`."""
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object and return its result.

        Raises:
            UserError: it failed there, or the process died.
        """
        self.connection.send((method, arguments))
        return self._answer()[1]

    def time(self, method: str, *arguments: Any) -> float:
        """Call a method of the object and return the seconds it took there; raises as `call`."""
        self.connection.send((method, arguments))
        return self._answer()[0]

    def _answer(self) -> tuple[float, Any]:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            raise UserError(
                f"{self.label}: its process died (exit code {code}); is there enough memory?"
            ) from None
        if isinstance(answer, str):
            raise UserError(f"{self.label}: {answer}")
        return answer

    def __enter__(self) -> "Worker":
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process: by the end of the connection, so that it can tidy up, or by a signal."""
        self.connection.close()
        self.process.join(EXIT_S)
        self.process.terminate()
        self.process.join()


def _serve(
    connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...], cores: int | None
) -> None:
    """Make the object, then answer every request with the seconds it took and its result."""
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    try:
        made = make(*arguments)
        connection.send((0.0, None))
        while True:
            method, arguments = connection.recv()
            began = time.perf_counter()
            result = getattr(made, method)(*arguments)
            connection.send((time.perf_counter() - began, result))
    except (EOFError, ConnectionError):  # the parent is gone
        return
    except Exception as error:
        with suppress(ConnectionError):
            connection.send(explain(error))


def environment(device: str, threads: int | None = None) -> dict[str, str]:
    """The environment of a worker that computes on this device, cpu or cuda, with so many threads."""
    count = str(threads or os.environ.get("OMP_NUM_THREADS", count_cores()))
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    if device == "cpu":
        return variables | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return variables | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share the GPU


def resolve_device(device: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, without importing a framework."""
    return ("cuda" if describe_machine()["gpu"] else "cpu") if device == "auto" else device


def time_calls(call: Callable[[], object], seconds: float, minimum: int = MIN_CALLS) -> np.ndarray:
    """Call for some seconds, but at least ``minimum`` times; returns each latency in nanoseconds, int64."""
    clock = time.perf_counter_ns
    latencies: list[int] = []
    end = clock() + int(seconds * 1e9)
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


def warm_up(call: Callable[[], object], windows: int = 30) -> bool:
    """Call until three windows in a row have about the same median; False if ``windows`` were not enough."""
    medians: list[float] = []
    while len(medians) < windows:
        medians.append(float(np.median(time_calls(call, WINDOW_S, WINDOW_CALLS))))
        last = medians[-3:]
        if len(last) == 3 and max(last) <= min(last) * (1 + TOLERANCE):
            return True
    return False


class MatrixProduct:
    """A product of square float32 matrices: the measure of what a device can compute."""

    def __init__(self, device: str):
        import torch

        torch.backends.cuda.matmul.allow_tf32 = False  # as all contenders compute
        self.side = MATRIX_SIDE[device]
        a, b, out = (torch.ones((self.side, self.side), device=device) for _ in range(3))

        def multiply() -> None:
            torch.mm(a, b, out=out)
            if device == "cuda":
                torch.cuda.synchronize()

        self.multiply = multiply

    def measure(self, seconds: float = 0.3) -> float:
        """FLOP/s."""
        self.multiply()
        return 2 * self.side**3 / (float(np.median(time_calls(self.multiply, seconds, 3))) / 1e9)


def convolution_flops(network: Network) -> list[int]:
    """Floating-point operations of each convolution for one image.

    A convolution with a K x K kernel, I channels in and O channels of H x W out takes 2 K K I O H W, a
    depthwise one 2 K K O H W, the zeros at the border counted. All else is left out: it is bound by memory.
    """
    return [
        2 * prod(network.parameters[f"{layer.owner}.weight"]) * prod(layer.out_shape[1:])
        for layer in network.layers
        if isinstance(layer.operation, Conv)
    ]


def round_figures(row: Row) -> Row:
    """The row with six significant digits in every float."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}
