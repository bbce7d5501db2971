"""One run on several devices, in one process or several. Each takes its share of every batch."""

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recipe.console import UserError, exit_code, reason
from recipe.plan import Plan
from recipe.run import Framework, TrainOptions, train

AXIS = "devices"
HEARTBEAT_SECONDS = 20  # a process that is silent for so long is lost

_mesh: Mesh | None = None  # of this run's devices, if there are several


def count() -> int:
    """The number of devices of this run."""
    return _mesh.size if _mesh else 1


def index() -> Array | int:
    """The number of this device, from 0; within `share_steps`."""
    return lax.axis_index(AXIS) if _mesh else 0


def sum_over_devices(x: Any) -> Any:
    """The sum of all devices' arrays, with the same bits on each; with one device the arrays themselves."""
    return lax.psum(x, AXIS) if _mesh else x


def placement(device: Any) -> Any:
    """Where the run's arrays are: on the device; if there are several, the same on each."""
    return NamedSharding(_mesh, PartitionSpec()) if _mesh else device


def fetch(arrays: Any) -> Any:
    """What is on the first device of this process, of arrays with that `placement`."""
    return jax.tree.map(lambda array: array.addressable_data(0), arrays) if _mesh else arrays


def share_steps(steps_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Steps on all devices, each with its part of every batch; all parts have the same size.

    Args:
        steps_fn: a function of (state, images, labels, plan), which returns what is equal on all devices.
    """
    if not _mesh:
        return steps_fn
    same, part = PartitionSpec(), PartitionSpec(None, AXIS)
    plan = Plan(indices=part, affine=part, dropout_keys=same, lr=same, ema_decay=same)
    return jax.shard_map(
        steps_fn, mesh=_mesh, in_specs=(same, same, same, plan), out_specs=same, check_vma=False
    )


@contextmanager
def raise_if_lost() -> Iterator[None]:
    """Within it, the error that another process of this run has ended is a `ConnectionError`."""
    try:
        yield
    except RuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise ConnectionError(str(error)) from error


def run(options: TrainOptions, framework: Framework) -> None:
    """Train as the options say, on as many devices as they say.

    The devices belong to several processes if JAX_COORDINATOR_ADDRESS (host:port, of the first) is set in
    each, with JAX_NUM_PROCESSES and JAX_PROCESS_ID where JAX does not find out these numbers by itself.

    Raises:
        UserError: a user's mistake.
    """
    options.validate()
    devices = options.devices or 1
    if several := "JAX_COORDINATOR_ADDRESS" in os.environ:
        processes, process = (_read_number(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        if devices % (processes or 1):
            raise UserError(
                f"--devices {devices} is no multiple of JAX_NUM_PROCESSES={processes}; "
                "give the number on all machines together"
            )
        jax.config.update("jax_num_cpu_devices", devices // processes if processes else 1)
        try:
            jax.distributed.initialize(
                num_processes=processes, process_id=process, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
            )
        except (ValueError, IndexError) as error:  # a number is missing, or the address has no port
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is set, but JAX says: {reason(error).rstrip('.')}; "
                "docs/lockstep.md has the variables"
            ) from None
    elif devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    if devices > 1:
        _make_mesh(devices, options.device)
    try:
        train(options, framework, follow=several and jax.process_index() > 0)
    except (UserError, KeyboardInterrupt) as error:
        if several:
            code = exit_code(error) if isinstance(error, KeyboardInterrupt) else 2
            atexit.register(_leave, code)
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


def _make_mesh(devices: int, device: str) -> None:
    global _mesh
    platform = "gpu" if device != "cpu" and jax.default_backend() == "gpu" else "cpu"
    seen = jax.devices(platform)
    if len(seen) < devices:
        raise UserError(f"--devices {devices}: JAX sees {len(seen)} here; give fewer, or --device cpu")
    _mesh = Mesh(np.array(seen[:devices]), (AXIS,))
