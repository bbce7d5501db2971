"""A few steps on several devices, as they should be or with a deliberate fault: a program of its own.

In a test's process JAX has one device already, and PyTorch needs a process for each. Usage: python -m
tests.device_steps FRAMEWORK DEVICES FOLDER; writes losses and tensors as FOLDER/FAULT.npz.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import multiprocessing

import jax_impl.devices
import jax_impl.model
import jax_impl.ops
import jax_impl.train
import torch_impl.devices
import torch_impl.model
import torch_impl.train
from recipe import data
from recipe.checkpoint import initial_tensors
from recipe.plan import Plan, make_plan
from tests.helpers import TINY, TINY_RECIPE, TRAINERS

STEPS = 5


def keep_own_statistics(patch: pytest.MonkeyPatch, framework: str) -> None:
    """Batch norm over each device's own images."""
    model = torch_impl.model if framework == "torch" else jax_impl.model
    alone = {"count": 1} if framework == "torch" else {"mesh": None}
    batch_norm = model.batch_norm

    def own(*given):
        return batch_norm(*given[:-1], replace(given[-1], **alone))

    patch.setattr(model, "batch_norm", own)


def add_up_gradients(patch: pytest.MonkeyPatch, framework: str) -> None:
    """The sum of the devices' gradients, each of its own mean, instead of the mean of all."""
    if framework == "torch":
        add = torch_impl.devices.Devices.sum_in_place

        def multiply_in_place(self, tensors):
            add(self, tensors)
            for tensor in tensors[:-2]:
                tensor.mul_(self.count)

        patch.setattr(torch_impl.devices.Devices, "sum_in_place", multiply_in_place)
    else:
        add = jax_impl.devices.Devices.sum

        def multiply(self, arrays):
            total = add(self, arrays)
            if not (isinstance(arrays, tuple) and len(arrays) == 3):  # gradients, loss, correct
                return total
            return jax.tree.map(lambda grad: grad * self.count, total[0]), *total[1:]

        patch.setattr(jax_impl.devices.Devices, "sum", multiply)


def number_images_anew(patch: pytest.MonkeyPatch, framework: str) -> None:
    """Dropout that counts the images of each device from 0."""
    model = torch_impl.model if framework == "torch" else jax_impl.model
    drop = model.drop
    patch.setattr(
        model, "drop", lambda x, rate, key, element, _, *more: drop(x, rate, key, element, 0, *more)
    )


def share_unequally(patch: pytest.MonkeyPatch, framework: str) -> None:
    """The first of two devices gets three quarters of each batch. In JAX, sharding makes this impossible."""

    def share(plan: Plan, device: int, devices: int) -> Plan:
        cut = plan.indices.shape[1] * 3 // 4
        part = slice(cut) if device == 0 else slice(cut, None)
        return plan._replace(indices=plan.indices[:, part], affine=plan.affine[:, part])

    patch.setattr(Plan, "share", share)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch, str], None]] = {
    "none": lambda patch, framework: None,
    "own_statistics": keep_own_statistics,
    "added_gradients": add_up_gradients,
    "images_numbered_anew": number_images_anew,
    "unequal_shares": share_unequally,
}


def train(framework: str, devices: Any) -> dict[str, np.ndarray]:
    """The losses and the state after the steps, in float64."""
    trainer_type = TRAINERS[framework]
    dataset = data.load("digits", None, trainer_type.read_mnist)
    trainer = trainer_type(TINY, TINY_RECIPE, dataset, devices, "float64")
    trainer.load(initial_tensors(TINY, TINY_RECIPE, 0, "float64"))
    plan = make_plan(TINY, TINY_RECIPE, 0, len(dataset.train_images), 0, STEPS)
    losses, correct = trainer.train(plan, lambda _: None)
    return {"losses": losses, "correct": correct} | trainer.tensors()


def save_all(framework: str, devices: Any, folder: Path) -> None:
    """Train with each fault and without; the first process saves."""
    for name, break_it in FAULTS.items():
        with pytest.MonkeyPatch.context() as patch:
            break_it(patch, framework)
            arrays = train(framework, devices)
        if framework == "jax" or devices.index == 0:
            np.savez(folder / f"{name}.npz", **arrays)


def run_process(index: int, devices: int, folder: Path) -> None:
    """One of PyTorch's processes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=index, world_size=devices
    )
    save_all("torch", torch_impl.devices.select_devices("cpu"), folder)
    torch.distributed.destroy_process_group()


def main(framework: str, devices: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    if framework == "torch":
        multiprocessing.spawn(run_process, (devices, folder), nprocs=devices)
    else:
        jax.config.update("jax_num_cpu_devices", devices)
        save_all("jax", jax_impl.devices.select_devices("cpu", devices), folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
