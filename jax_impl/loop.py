"""What surrounds a step in JAX: settings, the compiler, and the loop over a plan."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array, lax

from jax_impl.devices import Devices
from jax_impl.model import State
from recipe.data import cache_folder
from recipe.plan import Plan
from recipe.recipes import PRECISIONS, Precision

STEPS_PER_LOOP = 4  # on a GPU, which waits between two passes of a loop; more take longer to compile


def configure(precision: Precision) -> None:
    """Set up JAX for the whole process, before any array is made."""
    jax.config.update("jax_enable_x64", PRECISIONS[precision].dtype == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")  # not TF32, which has ten bits
    folder = cache_folder() / "jax"
    with suppress(OSError):  # without it, JAX would warn of each function that it compiles
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class StepLoop:
    """Takes the steps of a plan in one scan, which is compiled once for each number of steps.

    Args:
        train_step: takes images, labels, state and one step's plan; returns the new state, and the loss and
            the number of correct predictions.
        images: all training images.
        labels: all training labels.
        devices: that share each step.
    """

    def __init__(self, train_step: Callable[..., Any], images: Array, labels: Array, devices: Devices):
        def train_steps(state: State, images: Array, labels: Array, plan: Plan) -> Any:
            unroll = 1 if devices.on_cpu else STEPS_PER_LOOP
            return lax.scan(partial(train_step, images, labels), state, plan, unroll=unroll)

        self.images, self.labels, self.devices = images, labels, devices
        self.steps_fn = jax.jit(devices.share_steps(train_steps), donate_argnums=0)
        self.compiled: dict[int, Callable[..., Any]] = {}  # by the number of steps

    def run(
        self, state: State, plan: Plan, advance: Callable[[int], None]
    ) -> tuple[State, tuple[np.ndarray, np.ndarray]]:
        """Take the plan's steps; returns the state, and loss (float64) and correct predictions of each."""
        dtype = next(iter(state.values())).dtype
        plan = plan._replace(lr=plan.lr.astype(dtype), ema_decay=plan.ema_decay.astype(dtype))
        arguments = (state, self.images, self.labels, self.devices.put(plan))
        if plan.steps not in self.compiled:
            self.compiled[plan.steps] = self.steps_fn.lower(*arguments).compile()
        advance(0)
        with self.devices.raise_if_lost():
            state, (losses, correct) = self.compiled[plan.steps](*arguments)
            while not losses.is_ready():  # one call takes the whole epoch; this loop lets Ctrl-C through
                time.sleep(0.01)
            advance(len(losses))
            return state, (np.asarray(losses, np.float64), np.asarray(correct))
