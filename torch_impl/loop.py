"""What surrounds a step in PyTorch: settings, the compiler, CUDA graphs, and the loop over a plan."""

import ctypes
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._functorch import config as partitioner

from recipe import console
from recipe.plan import Plan
from recipe.recipes import Precision
from torch_impl.devices import Devices
from torch_impl.model import ConvNet, State

# glibc's names for the two limits of `keep_freed_memory` (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
WARM_UP_STEPS = 3  # before the step that becomes a CUDA graph, as PyTorch's notes on graphs advise


def configure(precision: Precision) -> None:
    """Set up PyTorch for the whole process; the precision changes nothing."""
    # No TF32, which has ten bits. After the newer `fp32_precision`, torch.onnx.export fails in this process.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # on a GPU, the fastest of cuDNN's kernels for each convolution
    if folder := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise console.UserError(
                f"cannot use TORCHINDUCTOR_CACHE_DIR={folder}: {error.strerror}; name a folder of your own"
            ) from None
    recompute_masks()
    keep_freed_memory()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA's compiler but no CUDA
    # SGD's marks for the profiler cannot be compiled.
    torch._logging.set_logs(dynamo=logging.ERROR)  # pyright: ignore[reportPrivateImportUsage]


def recompute_masks() -> None:
    """Compute masks again in the backward pass, because compiled code for CPUs stores booleans one by one.

    These settings of PyTorch are not documented; a test says when they are gone.
    """
    partitioner.ban_recompute_used_far_apart = False
    partitioner.ban_recompute_long_fusible_chains = False


def name_state(model: ConvNet, average: ConvNet, optimizer: torch.optim.Optimizer) -> State:
    """The tensors of a checkpoint, under its names; a step changes them in place.

    SGD gets its momentum before the first step, zeros, so that it is always the same memory. By itself it
    sets it to the first gradient, which is the same number. That it takes a ``momentum_buffer`` that is
    there already is not documented; a test holds it.

    Args:
        model: that is trained.
        average: of its weights; the model itself if there is none.
        optimizer: of the model.
    """
    state = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        state[f"momentum/{name}"] = torch.zeros_like(parameter)
        optimizer.state[parameter]["momentum_buffer"] = state[f"momentum/{name}"]
    if average is not model:
        state |= {f"average/{name}": array for name, array in average.state_dict().items()}
    return state


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors instead of returning it to the system at once.

    A step frees and allocates some hundred megabytes, and fresh pages cost a sixth of its time on a CPU.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the largest value that glibc accepts
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


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
        devices: of the buffers.
    """

    def __init__(
        self,
        train_step: Callable[[Plan], tuple[Tensor, Tensor]],
        steps: int,
        dtype: torch.dtype,
        devices: Devices,
    ):
        self.train_step = train_step
        self.steps, self.dtype, self.devices = steps, dtype, devices
        self.number = torch.zeros(1, dtype=torch.int64, device=devices.device)
        self.losses = torch.zeros(steps, dtype=dtype, device=devices.device)
        self.correct = torch.zeros(steps, dtype=torch.int64, device=devices.device)
        self.plan: Plan | None = None
        self.step = record_if_possible(self._step) if devices.device.type == "cuda" else self._step

    def run(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; returns loss (float64) and number of correct predictions of each."""
        self._load(plan.share(self.devices.index, self.devices.count))
        with self.devices.raise_if_lost():
            for _ in range(plan.steps):
                self.step()
                advance(1)
            losses, correct = (x[: plan.steps].numpy(force=True) for x in (self.losses, self.correct))
        return losses.astype(np.float64), correct.copy()

    def _load(self, plan: Plan) -> None:
        """Put a plan into the buffers and start with its first step."""
        arrays = [torch.from_numpy(array) for array in plan]
        if self.plan is None:
            self.plan = Plan(*(self._make_buffer(array) for array in arrays))
        for buffer, array in zip(self.plan, arrays, strict=True):
            buffer[: plan.steps] = array
        self.number.zero_()

    def _make_buffer(self, array: Tensor) -> Tensor:
        dtype = self.dtype if array.is_floating_point() else array.dtype
        return torch.zeros((self.steps, *array.shape[1:]), dtype=dtype, device=self.devices.device)

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
