"""The devices of a run. Each has a process of its own, which takes its share of every batch."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed

from recipe.console import UserError, show_line
from recipe.provenance import count_cores
from recipe.run import Trainer, TrainOptions, check_cores, prepare, train, what_is_kept


@dataclass(frozen=True)
class Devices:
    """This process's device, its number among those of the run, from 0, and how many there are."""

    device: torch.device
    index: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """The GPU's name, or cpu."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def threads(self) -> int:
        """The threads that PyTorch computes with on a CPU."""
        return torch.get_num_threads()

    def put(self, array: np.ndarray) -> Tensor:
        """Return a copy of the array on this device."""
        return torch.tensor(array, device=self.device)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of all devices' tensors, the same bits on each; of one device the tensor itself."""
        return _Sum.apply(x) if self.count > 1 else x  # pyright: ignore[reportReturnType]

    def sum_in_place(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by the sum of all devices' tensors, in one exchange."""
        if self.count > 1:
            flat = self.sum(torch.cat([tensor.flatten().to(tensors[0].dtype) for tensor in tensors]))
            sums = flat.split([tensor.numel() for tensor in tensors])
            for tensor, total in zip(tensors, sums, strict=True):
                tensor.copy_(total.view_as(tensor))

    @contextmanager
    def raise_if_lost(self) -> Iterator[None]:
        """Within it, the error that another process of this run has ended is a `ConnectionError`."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1:
                raise
            raise ConnectionError(str(error)) from error


class _Sum(torch.autograd.Function):
    """Sum over devices. The loss is a sum over devices too, so a gradient is the sum of theirs."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: object, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Sum.apply(grad)  # pyright: ignore[reportReturnType]


def select_devices(name: str) -> Devices:
    """Return the devices of a run that ``--device`` names: one, or those of torchrun's processes.

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto")
    on_gpu = name != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if distributed.is_initialized():
        return Devices(device, distributed.get_rank(), distributed.get_world_size())
    return Devices(device)


def run(options: TrainOptions, trainer_type: type[Trainer]) -> None:
    """Train as the options say, on as many devices as they say, or as torchrun has started processes for.

    Raises:
        UserError: a user's mistake.
        SystemExit: the processes that were started here have failed; they said why.
    """
    if not distributed.is_torchelastic_launched():
        if options.devices in (None, 1):
            train(options, trainer_type, select_devices(options.device))
        else:
            *_, out = prepare(options, trainer_type)  # so that a mistake is told once, and at once
            _check_gpus(options.devices, options.device)
            _launch(options, out)
        return
    processes = int(os.environ["WORLD_SIZE"])
    if options.devices not in (None, processes):
        raise UserError(f"--devices {options.devices}: torchrun started {processes}; leave the option out")
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        here, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if here >= gpus:
            raise UserError(f"PyTorch sees {gpus} CUDA devices for {processes} processes; try --device cpu")
        torch.cuda.set_device(here)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    devices = select_devices(options.device)
    try:
        train(replace(options, devices=processes), trainer_type, devices, report=devices.index == 0)
    except UserError:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # with which torchrun would end it before it says why
        raise
    distributed.destroy_process_group()  # not after a failure, when it might wait for what is gone


def _check_gpus(devices: int, device: str) -> None:
    gpus = torch.cuda.device_count()
    if device != "cpu" and gpus < devices and (gpus or device == "cuda"):
        raise UserError(f"--devices {devices}: PyTorch sees {gpus} GPUs here; give fewer, or --device cpu")
    if not gpus:
        check_cores(devices, device)


def _launch(options: TrainOptions, out: Path) -> None:
    """Run this program once for each device and wait. If one process fails, all end; the first says why."""
    from torch.distributed.elastic.multiprocessing.api import SignalException  # here: they take a second
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    devices = options.devices or 1
    show_line(f"starting {devices} processes")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // devices)))
    config = LaunchConfig(
        1, 1, devices, run_id="lockstep", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    logging.disable(logging.CRITICAL)  # the launcher's own account of a failure, some forty lines
    try:
        elastic_launch(config, sys.executable)("-m", "torch_impl.train", *sys.argv[1:])
    except ChildFailedError as error:
        first = error.failures.get(0)
        if first is None or not 0 <= first.exitcode < 128:  # a signal, perhaps the launcher's, was faster
            kept = what_is_kept(out, options.resume)
            raise UserError(f"a process of this run was killed, and the run ended; {kept}") from None
        sys.exit(2)  # the first process has said why
    except SignalException as end:
        sys.exit(128 + end.sigval)
