"""One process for each contender, told over a pipe what to do and timed inside it."""

import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.training_contenders import Contender, make_contestant
from recipe.data import Split
from recipe.errors import UserError


class Worker:
    """A contender in a process of its own; use it in a ``with`` statement.

    Args:
        contender: what is to be built there from ``split``, by ``make``.
        split: the data.
        make: a function or class that can be imported by name; it returns what `call` calls methods of.
        environment: variables of that process, on top of those here.
        timeout_s: how long any answer may take.
        deadline: ``time.monotonic()`` after which no answer is waited for.

    Raises:
        UserError: as in `call`.
    """

    def __init__(
        self,
        contender: Contender,
        split: Split,
        *,
        make: Callable[[Contender, Split], Any] = make_contestant,
        environment: Mapping[str, str] = MappingProxyType({}),
        timeout_s: float = 900.0,
        deadline: float = math.inf,
    ):
        self.contender, self.timeout_s, self.deadline = contender, timeout_s, deadline
        self.first_seconds = math.nan  # of the first call, where a benchmark notes it
        context = multiprocessing.get_context("spawn")  # JAX's threads would not survive a fork
        self.connection, theirs = context.Pipe()
        arguments = (theirs, contender, split, make, dict(environment))
        self.process = context.Process(target=serve, args=arguments)
        self.process.start()
        theirs.close()
        try:
            self.build_seconds: float = self._answer()[0]
            self.memory_at_start = self.memory()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> tuple[float, Any]:
        """Call a method of the contestant there; returns seconds and result.

        Raises:
            UserError: it failed there, died, or took too long.
        """
        self.connection.send((method, arguments))
        return self._answer()

    def memory(self) -> dict[str, float]:
        """Peak memory of the process and, where there is one, on the GPU: MiB."""
        return self.call("memory")[1]

    def _answer(self) -> tuple[float, Any]:
        label = self.contender.label
        try:
            patience = max(0.0, min(self.timeout_s, self.deadline - time.monotonic()))
            if not self.connection.poll(patience):
                raise UserError(f"{label}: no answer in {patience:.0f} s")
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise UserError(
                f"{label}: its process died (exit code {self.process.exitcode}); is there enough memory?"
            ) from None
        if isinstance(answer, str):
            raise UserError(f"{label}: {answer}")
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


def serve(
    connection: Connection,
    contender: Contender,
    split: Split,
    make: Callable[[Contender, Split], Any],
    environment: dict[str, str],
) -> None:
    """Build the contestant, then answer every request with the seconds it took and its result."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    try:
        began = time.perf_counter()
        contestant = make(contender, split)
        connection.send((time.perf_counter() - began, None))
        while True:
            method, arguments = connection.recv()
            work = peak_memory if method == "memory" else getattr(contestant, method)
            began = time.perf_counter()
            result = work(*arguments)
            connection.send((time.perf_counter() - began, result))
    except EOFError:  # the parent is gone
        return
    except Exception as error:
        connection.send(f"{type(error).__name__}: {' '.join(str(error).split())}")


def peak_memory() -> dict[str, float]:
    """The most memory this process has held, and its framework on the GPU: MiB."""
    # Not ru_maxrss: a new process inherits it from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    found = {"process_mib": peak / 2**10}
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        found["gpu_mib"] = sys.modules["torch"].cuda.max_memory_allocated() / 2**20
    elif "jax" in sys.modules and (statistics := sys.modules["jax"].local_devices()[0].memory_stats()):
        found["gpu_mib"] = statistics["peak_bytes_in_use"] / 2**20
    return found


@contextmanager
def workers_environment(device: str, fresh_caches: bool) -> Iterator[None]:
    """What worker processes find in their environment: one kind of device and, if wanted, empty caches."""
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        own = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several processes share one GPU
        if device == "cpu":
            own |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if fresh_caches:  # of compilations; JAX's lie in the project's own
            own |= {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "LOCKSTEP_CACHE": folder}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
