"""Faster steps where the machine has what they take, and the plain ones, with a notice, where it has not."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from recipe import report

# glibc's names for what `keep_freed_memory` sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
WARM_UP_STEPS = 3  # taken before the one that becomes a CUDA graph, as PyTorch's notes on graphs advise


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors instead of handing it back to the system at once.

    A step frees and takes some hundred megabytes, and fresh pages cost a sixth of its time on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most it takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def compile_if_possible(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile``, or the function itself, with a notice, where there is no working compiler."""
    from torch._dynamo.exc import TorchDynamoException  # here, because it takes a second to import

    compiled = torch.compile(function, dynamic=False)
    chosen = None

    def first_try(*arguments: Tensor) -> Any:
        nonlocal chosen
        if chosen is None:
            try:
                result = compiled(*arguments)
            except (TorchDynamoException, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0]
                report.show_notice(f"torch.compile does not work here, training goes on without it: {reason}")
                chosen = function
            else:
                chosen = compiled
                return result
        return chosen(*arguments)

    return first_try


def record_if_possible(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph once it has warmed up, or the step itself, with a notice, where that fails.

    A step of these networks is a hundred and more kernels, each done in less time than its launch takes; a
    graph launches all of them as one. It reads and writes the memory it was recorded with.
    """
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    calls, replay = 0, None

    def warm_up_or_replay() -> None:
        nonlocal calls, replay
        calls += 1
        if calls > WARM_UP_STEPS and replay is None:
            try:
                with torch.cuda.graph(graph, stream=stream):  # which records, and computes nothing
                    step()
                replay = graph.replay
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                report.show_notice(f"CUDA graphs do not work here, training goes on without them: {reason}")
                replay = step
        if replay is not None:
            replay()
            return
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)

    return warm_up_or_replay
