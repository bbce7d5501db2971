"""Make steps faster where there is a compiler or a GPU; elsewhere take the plain step, with a notice."""

import ctypes
import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipe import console
from recipe.plan import Plan

# glibc's names for the two limits of `keep_freed_memory` (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SAMPLE_SECONDS = 0.3  # of watching how busy the cores are, before the number of threads is chosen
WATCH_SECONDS = 10.0  # between two looks at the cores during a run
TRAININGS = [[b"-m", b"torch_impl.train"], [b"-m", b"jax_impl.train"]]  # their first arguments
WARM_UP_STEPS = 3  # before the step that becomes a CUDA graph, as PyTorch's notes on graphs advise


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors instead of returning it to the system at once.

    A step frees and allocates some hundred megabytes, and fresh pages cost a sixth of its time on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest value that glibc accepts
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache  # once in a process: a run that has begun keeps its number of threads, and so its bits
def share_cores() -> None:
    """Use only the cores that other programs leave free, unless OMP_NUM_THREADS gives the number of threads.

    OpenMP's threads wait for each other in loops. If another program keeps one of them from its core, the
    others wait at every parallel loop, and a step takes twenty times as long. Trainings that start at once
    divide the cores: none of them is busy yet, but each sees the others in the list of processes.
    """
    cores = _own_cores()
    if "OMP_NUM_THREADS" in os.environ or len(cores) < 2:
        return
    before = _busy_seconds(cores)
    time.sleep(SAMPLE_SECONDS)
    busy = round((_busy_seconds(cores) - before) / SAMPLE_SECONDS)
    trainings = _count_trainings(cores)
    threads = max(1, min(len(cores) - busy, len(cores) // (1 + trainings)))
    if threads < len(cores):
        torch.set_num_threads(threads)
        others = console.count(trainings, "other training") if trainings else "other programs"
        console.show_notice(
            f"{others} and this one share {len(cores)} cores, so PyTorch takes "
            f"{console.count(threads, 'thread')}; set OMP_NUM_THREADS to choose the number yourself"
        )


def watch_cores(step: Callable[[], None]) -> Callable[[], None]:
    """The step, with one notice if other programs come to take cores that this run's threads need.

    The run itself goes on as it is: another number of threads would change its bits. A process that another
    one started, such as a benchmark's, is not watched: the others compute while it waits for its turn.
    """
    cores, threads = _own_cores(), torch.get_num_threads()
    if threads < 2 or multiprocessing.parent_process() or not _busy_seconds(cores):
        return step
    looked = used = 0.0  # when, and the processor time of other programs until then
    crowded = 0  # looks in a row

    def step_and_look() -> None:
        nonlocal looked, used, crowded
        step()  # the first one compiles
        now = time.monotonic()
        if crowded == 2 or now < looked + WATCH_SECONDS:
            return
        first, seconds, before = not looked, now - looked, used
        looked, used = now, _busy_seconds(cores) - time.process_time()
        others = 0.0 if first else (used - before) / seconds
        crowded = crowded + 1 if len(cores) - others < threads - 0.5 else 0
        if crowded == 2:
            console.show_notice(
                f"other programs take cores from this run's {threads} threads, which wait for each other: a "
                "step can take twenty times as long; end them, or stop this run after an epoch and go on "
                f"with OMP_NUM_THREADS={max(1, len(cores) - round(others))} and --resume"
            )

    return step_and_look


def _own_cores() -> Collection[int]:
    """The cores that this process may use; empty where the system does not tell."""
    return getattr(os, "sched_getaffinity", lambda _: ())(0)


def _count_trainings(cores: Collection[int]) -> int:
    """Other processes that train, or are about to, and may use some of these cores."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            program, *arguments = path.read_bytes().split(b"\0")
            if b"python" in program and arguments[:2] in TRAININGS:
                number = int(path.parent.name)
                count += number != os.getpid() and not os.sched_getaffinity(number).isdisjoint(cores)
    return count


def _busy_seconds(cores: Collection[int]) -> float:
    """Processor time that all programs have used on these cores; 0 where the system does not tell."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0.0
    ticks = 0
    for line in lines:
        name, *times = line.split()
        if name.removeprefix("cpu").isdigit() and int(name.removeprefix("cpu")) in cores:
            ticks += sum(map(int, times[:3])) + sum(map(int, times[5:8]))  # all but idle and waiting
    return ticks / os.sysconf("SC_CLK_TCK")


def compile_if_possible(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile``, or the function itself, with a notice, where there is no working compiler."""
    from torch._dynamo.exc import TorchDynamoException  # here, because it takes a second to import

    compiled = torch.compile(function, dynamic=False)
    chosen = None

    def try_first(*arguments: Any) -> Any:
        nonlocal chosen
        if chosen is None:
            try:
                result = compiled(*arguments)
            except (TorchDynamoException, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0]
                console.show_notice(
                    f"torch.compile does not work here, training goes on without it: {reason}"
                )
                chosen = function
            else:
                chosen = compiled
                return result
        return chosen(*arguments)

    return try_first


class StepLoop:
    """Takes the steps of a plan one after the other; on a GPU as a CUDA graph.

    A step of these networks runs more than a hundred kernels, and each takes less time than its launch. A
    graph launches all of them at once. A graph reads and writes the memory that it was recorded with.
    So the plan lies in the same buffers in every epoch, and the number of the next step is on the device too.

    Args:
        train_step: takes one step's plan; returns its loss and number of correct predictions.
        steps: the most steps that a plan has.
        dtype: of losses, learning rates and decays.
        device: of the buffers.
    """

    def __init__(
        self,
        train_step: Callable[[Plan], tuple[Tensor, Tensor]],
        steps: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.train_step = train_step
        self.steps, self.dtype, self.device = steps, dtype, device
        self.number = torch.zeros(1, dtype=torch.int64, device=device)
        self.losses = torch.zeros(steps, dtype=dtype, device=device)
        self.correct = torch.zeros(steps, dtype=torch.int64, device=device)
        self.plan: Plan | None = None
        self.step = (record_if_possible if device.type == "cuda" else watch_cores)(self._step)

    def load(self, plan: Plan) -> None:
        """Put a plan into the buffers and start with its first step."""
        arrays = [torch.from_numpy(array) for array in plan]
        if self.plan is None:
            self.plan = Plan(*(self._make_buffer(array) for array in arrays))
        for buffer, array in zip(self.plan, arrays, strict=True):
            buffer[: plan.steps] = array
        self.number.zero_()

    def results(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Loss (float64) and number of correct predictions of the first steps."""
        losses, correct = (buffer[:steps].numpy(force=True) for buffer in (self.losses, self.correct))
        return losses.astype(np.float64), correct.copy()

    def _make_buffer(self, array: Tensor) -> Tensor:
        dtype = self.dtype if array.is_floating_point() else array.dtype
        return torch.zeros((self.steps, *array.shape[1:]), dtype=dtype, device=self.device)

    def _step(self) -> None:
        """Take the next step; nothing in it waits for a GPU."""
        assert self.plan is not None
        step = Plan(*(buffer.index_select(0, self.number)[0] for buffer in self.plan))
        loss, correct = self.train_step(step)
        self.losses.index_copy_(0, self.number, loss[None])
        self.correct.index_copy_(0, self.number, correct[None])
        self.number += 1


def record_if_possible(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph after its warm-up, or the step itself, with a notice, where that fails."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    calls, replay = 0, None

    def warm_up_or_replay() -> None:
        nonlocal calls, replay
        calls += 1
        if calls > WARM_UP_STEPS and replay is None:
            try:
                with torch.cuda.graph(graph, stream=stream):  # this records, and computes nothing
                    step()
                replay = graph.replay
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                console.show_notice(f"CUDA graphs do not work here, training goes on without them: {reason}")
                replay = step
        if replay is not None:
            replay()
            return
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)

    return warm_up_or_replay
