"""One process for each contender, told over a pipe what to do and timed inside it."""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.training_contenders import Contender, make_contestant
from recipe.data import Split
from recipe.errors import UserError


class Worker:
    """A contender in a process of its own; use it in a ``with`` statement."""

    def __init__(self, contender: Contender, split: Split, timeout_s: float = 900.0):
        self.contender, self.timeout_s = contender, timeout_s
        context = multiprocessing.get_context("spawn")  # JAX's threads would not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, contender, split))
        self.process.start()
        theirs.close()
        self.build_seconds: float = self._answer()[0]

    def call(self, method: str, *arguments: Any) -> tuple[float, Any]:
        """Call a method of the contestant there; returns seconds and result.

        Raises:
            UserError: it failed there, died, or took longer than the time limit.
        """
        self.connection.send((method, arguments))
        return self._answer()

    def memory(self) -> dict[str, float]:
        """Peak memory of the process and, where there is one, on the GPU: MiB."""
        return self.call("memory")[1]

    def _answer(self) -> tuple[float, Any]:
        label = self.contender.label
        try:
            if not self.connection.poll(self.timeout_s):
                raise UserError(f"{label}: no answer in {self.timeout_s:.0f} s")
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
        self.process.terminate()
        self.process.join()
        self.connection.close()


def serve(connection: Connection, contender: Contender, split: Split) -> None:
    """Build the contestant, then answer every request with the seconds it took and its result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    try:
        began = time.perf_counter()
        contestant = make_contestant(contender, split)
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
