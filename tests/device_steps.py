"""A few steps on several devices, as they should be or with a deliberate fault: a program of its own.

In a test's process JAX has one device already, and PyTorch needs a process for each. Usage: python -m
tests.device_steps FRAMEWORK DEVICES FOLDER; writes losses and tensors as FOLDER/FAULT.npz.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from torch import multiprocessing, nn

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
from tests.helpers import FRAMEWORKS, TINY, TINY_RECIPE

STEPS = 5


def keep_own_statistics(patch: pytest.MonkeyPatch, framework: str) -> None:
    """Batch norm over each device's own images."""
    if framework == "torch":
        patch.setattr(torch_impl.model.BatchNorm, "forward", nn.BatchNorm2d.forward)
    else:
        patch.setattr(jax_impl.ops, "_batch_mean", lambda means: means)


def add_up_gradients(patch: pytest.MonkeyPatch, framework: str) -> None:
    """The sum of the devices' gradients, each of its own mean, instead of the mean of all."""
    ours = torch_impl.devices if framework == "torch" else jax_impl.devices

    def multiply(grads):
        return jax.tree.map(lambda grad: grad * ours.count(), grads)

    if framework == "torch":
        add = torch_impl.devices.sum_in_place
        patch.setattr(ours, "sum_in_place", lambda all: add(all) or [x.mul_(ours.count()) for x in all[:-2]])
    else:
        add = jax_impl.devices.sum_over_devices
        patch.setattr(ours, "sum_over_devices", lambda all: (multiply(add(all[0])), *add(all[1:])))


def number_images_anew(patch: pytest.MonkeyPatch, framework: str) -> None:
    """Dropout that counts the images of each device from 0."""
    ours = torch_impl if framework == "torch" else jax_impl
    names = ("count", "sum_over_devices")
    kept = {name: getattr(ours.devices, name) for name in names}
    patch.setattr(ours.model, "devices", SimpleNamespace(index=lambda: 0, **kept))


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


def train(framework: str) -> dict[str, np.ndarray]:
    """The losses and the state after the steps, in float64."""
    split = data.split(data.load_digits(), "test")
    trainer = FRAMEWORKS[framework].trainer(TINY, TINY_RECIPE, split, "cpu", "float64")
    trainer.load(initial_tensors(TINY, TINY_RECIPE, 0, "float64"))
    plan = make_plan(TINY, TINY_RECIPE, 0, len(split.train_images), 0, STEPS)
    losses, correct = trainer.train(plan, lambda _: None)
    return {"losses": losses, "correct": correct} | trainer.tensors()


def save_all(framework: str, devices: int, folder: Path) -> None:
    """Train with each fault and without; the first process saves."""
    for name, break_it in FAULTS.items():
        with pytest.MonkeyPatch.context() as patch:
            break_it(patch, framework)
            arrays = train(framework)
        if framework == "jax" or torch_impl.devices.index() == 0:
            np.savez(folder / f"{name}.npz", **arrays)


def run_process(index: int, devices: int, folder: Path) -> None:
    """One of PyTorch's processes."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=index, world_size=devices
    )
    save_all("torch", devices, folder)
    torch.distributed.destroy_process_group()


def main(framework: str, devices: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    if framework == "torch":
        multiprocessing.spawn(run_process, (devices, folder), nprocs=devices)
    else:
        jax.config.update("jax_num_cpu_devices", devices)
        jax_impl.devices._make_mesh(devices, "cpu")
        save_all("jax", devices, folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
