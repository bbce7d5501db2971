"""The devices of a run, in one process or several. Each takes its share of every batch."""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recipe.console import UserError, check_range, reason
from recipe.plan import Plan
from recipe.provenance import count_cores
from recipe.run import MAX_DEVICES, Trainer, TrainOptions, check_cores, train

AXIS = "devices"
HEARTBEAT_SECONDS = 20  # a process that is silent for so long is lost


@dataclass(frozen=True)
class Devices:
    """The first device of this process and, if the run has several, the mesh of all."""

    device: Any  # jax.Device, which is no type
    mesh: Mesh | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return self.mesh.size if self.mesh else 1

    @property
    def on_cpu(self) -> bool:
        """Whether the arrays are on a CPU, whatever else the machine has."""
        return self.device.platform == "cpu"

    @property
    def index(self) -> Array | int:
        """The number of this device, from 0; within `share_steps`."""
        return lax.axis_index(AXIS) if self.mesh else 0

    @property
    def name(self) -> str:
        """The GPU's name, or cpu."""
        return self.device.device_kind if self.device.platform == "gpu" else "cpu"

    @property
    def threads(self) -> int:
        """The threads that XLA computes with on a CPU: one a core."""
        return count_cores()

    def put(self, array: Any) -> Any:
        """Return a copy of an array, or of a tree of arrays, on the device; if there are several, on each."""
        placement = NamedSharding(self.mesh, PartitionSpec()) if self.mesh else self.device
        return jax.device_put(array, placement, may_alias=False)

    def sum(self, x: Any) -> Any:
        """Return the sum of all devices' arrays, the same bits on each; with one device the arrays."""
        return lax.psum(x, AXIS) if self.mesh else x

    def fetch(self, arrays: Any) -> Any:
        """Return what is on the first device of this process, of arrays that are on each."""
        return jax.tree.map(lambda array: array.addressable_data(0), arrays) if self.mesh else arrays

    def share_steps(self, steps_fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return steps on all devices, each with its part of every batch; all parts have the same size.

        Args:
            steps_fn: a function of (state, images, labels, plan), which returns what is equal on all devices.
        """
        if not self.mesh:
            return steps_fn
        same, part = PartitionSpec(), PartitionSpec(None, AXIS)
        plan = Plan(indices=part, affine=part, dropout_keys=same, lr=same, ema_decay=same)
        specs = (same, same, same, plan)
        return jax.shard_map(steps_fn, mesh=self.mesh, in_specs=specs, out_specs=same, check_vma=False)

    @contextmanager
    def raise_if_lost(self) -> Iterator[None]:
        """Within it, the error that another process of this run has ended is a `ConnectionError`."""
        try:
            yield
        except RuntimeError as error:
            if jax.process_count() == 1:
                raise
            raise ConnectionError(str(error)) from error


def select_devices(name: str, count: int = 1) -> Devices:
    """Return the devices of a run that ``--device`` and ``--devices`` name.

    Raises:
        UserError: CUDA is asked for and there is none, or there are fewer.
    """
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    if name == "cuda" and not gpus:
        raise UserError("--device cuda: JAX sees no CUDA device here; use --device cpu or auto")
    seen = gpus if name != "cpu" and gpus else jax.devices("cpu")
    if len(seen) < count:
        raise UserError(f"--devices {count}: JAX sees {len(seen)} here; give fewer, or --device cpu")
    return Devices(seen[0], Mesh(np.array(seen[:count]), (AXIS,)) if count > 1 else None)


def run(options: TrainOptions, trainer_type: type[Trainer]) -> None:
    """Train as the options say, on as many devices as they say.

    The devices belong to several processes if JAX_COORDINATOR_ADDRESS (host:port, of the first) is set in
    each, with JAX_NUM_PROCESSES and JAX_PROCESS_ID where JAX does not find out these numbers by itself.

    Raises:
        UserError: a user's mistake.
    """
    check_range("--devices", options.devices, 1, MAX_DEVICES)
    count = options.devices or 1
    if several := "JAX_COORDINATOR_ADDRESS" in os.environ:
        processes, process = (_read_number(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        if count % (processes or 1):
            raise UserError(
                f"--devices {count} is no multiple of JAX_NUM_PROCESSES={processes}; "
                "give the number on all machines together"
            )
        jax.config.update("jax_num_cpu_devices", count // processes if processes else 1)
        try:
            jax.distributed.initialize(
                num_processes=processes, process_id=process, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
            )
        except (ValueError, IndexError) as error:  # a number is missing, or the address has no port
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is set, but JAX says: {reason(error).rstrip('.')}; "
                "docs/lockstep.md has the variables"
            ) from None
    elif count > 1:
        jax.config.update("jax_num_cpu_devices", count)
    try:
        devices = select_devices(options.device, count)
        if not several and devices.on_cpu:
            check_cores(count, options.device)
        train(options, trainer_type, devices, report=not several or jax.process_index() == 0)
    except (UserError, KeyboardInterrupt) as error:
        if several:
            interrupted = 128 + getattr(error, "number", signal.SIGINT)
            atexit.register(_leave, 2 if isinstance(error, UserError) else interrupted)
        raise


def _leave(code: int) -> NoReturn:
    """End before JAX does, which would wait for the other processes and abort if one is lost."""
    sys.stdout.flush()
    os._exit(code)


def _read_number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not text.isdigit():
        raise UserError(f"the variable {variable} is {text!r}; give a number")
    return int(text) if text else None
