"""Train a network in PyTorch: ``python -m torch_impl.train --help``."""

import copy
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor as Array
from torch import dtype as DType
from torch.nn import functional

from recipe.augmentation import SIDE, UNIT, crop, pad, warp
from recipe.checkpoint import Tensors
from recipe.console import run_command
from recipe.data import EVALUATION_BATCH, MEAN, STD, Dataset
from recipe.networks import Network
from recipe.plan import Plan, steps_per_epoch
from recipe.recipes import PRECISIONS, Precision, Recipe
from recipe.rounding import MOMENTUM, STATE, round_to_grid
from recipe.run import TrainOptions
from torch_impl.data import read_mnist
from torch_impl.devices import Devices, run
from torch_impl.loop import StepLoop, compile_if_possible, configure, name_state
from torch_impl.model import ConvNet, State


def normalise(pixels: Array, white: int, dtype: DType) -> Array:
    """Integers (N, 28, 28), 0 to ``white``, to normalised images (N, 1, 28, 28)."""
    return (pixels.to(dtype) * (1 / (white * STD)) - MEAN / STD)[:, None]


def prepare_images(padded: Array, indices: Array, affine: Array, dtype: DType) -> Array:
    """One batch of training images, warped unless ``affine`` is empty."""
    if len(affine) == 0:
        return normalise(crop(padded[indices]), 255, dtype)
    side = torch.arange(SIDE, dtype=torch.int32, device=affine.device)
    return normalise(warp(padded, affine, indices[:, None, None], side[:, None], side), UNIT, dtype)


def training_loss(
    model: ConvNet, recipe: Recipe, dtype: DType, padded: Array, labels: Array, step: Plan
) -> tuple[Array, Array]:
    """Mean cross entropy of one step's batch and the number of correct predictions.

    With several devices, this one's share of both. The running statistics of the model, which is in training
    mode, are updated.

    Args:
        model: in training mode.
        recipe: for label smoothing.
        dtype: the type to compute in.
        padded: all training images, from `recipe.augmentation.pad`.
        labels: all training labels, uint8.
        step: one step of a plan.
    """
    images, targets = prepare_images(padded, step.indices, step.affine, dtype), labels[step.indices]
    logits = model(images, step.dropout_keys)
    loss = functional.cross_entropy(logits, targets.long(), label_smoothing=recipe.label_smoothing)
    return loss / model.devices.count, (logits.argmax(1) == targets).sum()


def make_optimizer(recipe: Recipe, model: ConvNet) -> torch.optim.Optimizer:
    """SGD with momentum, its learning rate in one tensor; weight decay on the convolution kernels only."""
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 4]
    decay = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": others}]
    lr = torch.zeros((), dtype=kernels[0].dtype, device=kernels[0].device)
    return torch.optim.SGD(decay, lr, recipe.momentum, nesterov=recipe.nesterov, foreach=True)


def train_step(
    optimizer: torch.optim.Optimizer,
    devices: Devices,
    loss_fn: Callable[[Plan], tuple[Array, Array]],
    update_fn: Callable[[Plan], None],
    step: Plan,
) -> tuple[Array, Array]:
    """Take one step; returns the loss and the number of correct predictions before its update."""
    optimizer.zero_grad()
    loss, correct = loss_fn(step)
    loss.backward()
    loss = loss.detach()
    grads = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    devices.sum_in_place([*grads, loss, correct])
    update_fn(step)
    return loss, correct


@torch.no_grad()
def update(
    optimizer: torch.optim.Optimizer,
    network: Network,
    on_grid: bool,
    state: State,
    step: Plan,
) -> None:
    """Take the optimizer's step, and average <- decay average + (1 - decay) model where there is an average.

    The average is of parameters and statistics. On the grid, the whole new state is rounded to it.
    """
    for group in optimizer.param_groups:
        group["lr"].copy_(step.lr)
    optimizer.step()
    for name in (*network.parameters, *network.buffers):
        if f"average/{name}" in state:
            state[f"average/{name}"].lerp_(state[name], 1 - step.ema_decay)
    if on_grid:
        for name, array in state.items():
            array.copy_(round_to_grid(array, MOMENTUM if name.startswith("momentum/") else STATE))


@torch.inference_mode()
def predict_batch(model: ConvNet, dtype: DType, padded: Array) -> Array:
    """Logits (N, 10) of padded images, by the model in evaluation mode."""
    model.eval()
    return model(normalise(crop(padded), 255, dtype))


class Trainer:
    """Model, optimizer and data on the devices; see `recipe.run.Trainer`."""

    framework: ClassVar[str] = "torch"
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "numpy")
    read_mnist = staticmethod(read_mnist)

    def __init__(
        self, network: Network, recipe: Recipe, dataset: Dataset, devices: Devices, precision: Precision
    ):
        configure(precision)
        self.devices = devices
        self.dtype = getattr(torch, PRECISIONS[precision].compute_dtype)
        self.train_images = devices.put(pad(dataset.train_images))
        self.train_labels = devices.put(dataset.train_labels)
        self.val_images = devices.put(pad(dataset.val_images))
        self.val_labels = devices.put(dataset.val_labels)

        self.model = ConvNet(network, recipe.dropout, devices)
        dtype = getattr(torch, PRECISIONS[precision].dtype)
        self.model.to(devices.device, dtype, memory_format=torch.channels_last)  # pyright: ignore
        averages = recipe.ema_decay is not None
        self.average = copy.deepcopy(self.model).requires_grad_(False) if averages else self.model
        self.optimizer = make_optimizer(recipe, self.model)
        self.state = name_state(self.model, self.average, self.optimizer)
        loss_fn = partial(training_loss, self.model, recipe, self.dtype, self.train_images, self.train_labels)
        on_grid = PRECISIONS[precision].on_grid
        update_fn = partial(update, self.optimizer, network, on_grid, self.state)
        if devices.device.type == "cuda":  # else the optimizer waits for the GPU to read its learning rate
            update_fn = compile_if_possible(update_fn)
        step_fn = partial(train_step, self.optimizer, devices, compile_if_possible(loss_fn), update_fn)
        steps = steps_per_epoch(recipe, len(dataset.train_images))
        self.loop = StepLoop(step_fn, steps, dtype, devices)

    def load(self, tensors: Tensors) -> None:
        """Set the state from a checkpoint's tensors."""
        for name, array in self.state.items():
            array.copy_(torch.from_numpy(tensors[name]))

    def tensors(self) -> Tensors:
        """The state as a checkpoint's tensors."""
        return {name: array.numpy(force=True).copy() for name, array in self.state.items()}

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; returns loss and number of correct predictions of each."""
        self.model.train()
        return self.loop.run(plan, advance)

    def predict(self) -> np.ndarray:
        """Logits (N, 10) of the validation images, by the averaged weights if there are any."""
        return self.val_logits().numpy(force=True)

    def val_logits(self) -> Array:
        """The logits of `predict`, on the device."""
        batches = self.val_images.split(EVALUATION_BATCH)
        return torch.cat([predict_batch(self.average, self.dtype, images) for images in batches])

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation images."""
        logits = self.val_logits()
        loss = functional.cross_entropy(logits, self.val_labels.long())
        accuracy = (logits.argmax(1) == self.val_labels).double().mean()
        return float(loss), float(accuracy)


def main(options: TrainOptions) -> None:
    """Train as the command line says."""
    run(options, Trainer)


if __name__ == "__main__":
    run_command(TrainOptions, main, f"python -m {__package__}.train")
