"""Train a network in PyTorch: ``python -m torch_impl.train --help``."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch._functorch import config as partitioner
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
from torch_impl.compile import StepLoop, compile_if_possible, keep_freed_memory
from torch_impl.data import read_mnist
from torch_impl.devices import Devices, run
from torch_impl.model import ConvNet, dump_tensors, load_tensors


def normalise(pixels: Tensor, white: int, dtype: torch.dtype) -> Tensor:
    """Integers (N, 28, 28), 0 to ``white``, to normalised images (N, 1, 28, 28)."""
    return (pixels.to(dtype) * (1 / (white * STD)) - MEAN / STD)[:, None]


def prepare_images(padded: Tensor, indices: Tensor, affine: Tensor, dtype: torch.dtype) -> Tensor:
    """One batch of training images, warped unless ``affine`` is empty: (B, 1, 28, 28)."""
    if len(affine) == 0:
        return normalise(crop(padded[indices]), 255, dtype)
    side = torch.arange(SIDE, dtype=torch.int32, device=affine.device)
    return normalise(warp(padded, affine, indices[:, None, None], side[:, None], side), UNIT, dtype)


def training_loss(
    model: ConvNet, recipe: Recipe, dtype: torch.dtype, padded: Tensor, labels: Tensor, step: Plan
) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of one step's batch and the number of correct predictions.

    With several devices, this one's share of both. The running statistics of the model, which is in training
    mode, are updated.

    Args:
        model: in training mode.
        recipe: for label smoothing.
        dtype: the type to compute in.
        padded: all training images, from `recipe.augmentation.pad`.
        labels: all training labels, int64.
        step: one step of a plan.
    """
    images, targets = prepare_images(padded, step.indices, step.affine, dtype), labels[step.indices]
    logits = model(images, step.dropout_keys)
    loss = functional.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
    return loss / model.devices.count, (logits.argmax(1) == targets).sum()


def make_optimizer(recipe: Recipe, model: ConvNet) -> torch.optim.Optimizer:
    """SGD with momentum, its learning rate in one tensor; weight decay on the convolution kernels only."""
    kernels = [p for name, p in model.named_parameters() if name in model.network.kernels]
    others = [p for name, p in model.named_parameters() if name not in model.network.kernels]
    groups = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": others}]
    lr = torch.zeros((), dtype=kernels[0].dtype, device=kernels[0].device)
    optimizer = torch.optim.SGD(groups, lr, recipe.momentum, nesterov=recipe.nesterov, foreach=True)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def train_step(
    optimizer: torch.optim.Optimizer,
    devices: Devices,
    loss_fn: Callable[[Plan], tuple[Tensor, Tensor]],
    update_fn: Callable[[Tensor], None],
    step: Plan,
) -> tuple[Tensor, Tensor]:
    """Take one step; returns the loss and the number of correct predictions before its update."""
    optimizer.zero_grad()
    loss, correct = loss_fn(step)
    loss.backward()
    loss = loss.detach()
    grads = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    devices.sum_in_place([*grads, loss, correct])
    optimizer.defaults["lr"].copy_(step.lr)
    update_fn(step.ema_decay)
    return loss, correct


@torch.no_grad()
def update_parameters(
    optimizer: torch.optim.Optimizer,
    model: ConvNet,
    ema: ConvNet | None,
    on_grid: bool,
    ema_decay: Tensor,
) -> None:
    """Take the optimizer's step; then ema <- decay ema + (1 - decay) model, parameters and statistics.

    Round the new state to the grid if it belongs there.
    """
    optimizer.step()
    if ema is not None:
        torch._foreach_lerp_(_floats(ema), _floats(model), 1 - ema_decay)  # pyright: ignore
    if on_grid:
        for tensor in (*_floats(model), *(_floats(ema) if ema is not None else ())):
            tensor.copy_(round_to_grid(tensor, STATE))
        for momentum in (state["momentum_buffer"] for state in optimizer.state.values()):
            momentum.copy_(round_to_grid(momentum, MOMENTUM))


def _floats(model: ConvNet) -> list[Tensor]:
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]


def predict_batch(model: ConvNet, dtype: torch.dtype, padded: Tensor) -> Tensor:
    """Logits (N, 10) of padded images, by the model in evaluation mode."""
    with torch.inference_mode():
        return model.eval()(normalise(crop(padded), 255, dtype))


def configure(precision: Precision) -> None:
    """Set up PyTorch for the whole process; the precision changes nothing."""
    # No TF32, which has ten bits. After the newer `fp32_precision`, torch.onnx.export fails in this process.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    # Compute masks again in the backward pass, because compiled code for CPUs stores booleans one by one.
    partitioner.ban_recompute_used_far_apart = False
    partitioner.ban_recompute_long_fusible_chains = False
    keep_freed_memory()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA's compiler but no CUDA


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
        self.dtype = getattr(torch, PRECISIONS[precision].dtype)
        self.compute_dtype = getattr(torch, PRECISIONS[precision].compute_dtype)
        self.train_images = torch.from_numpy(pad(dataset.train_images)).to(devices.device)
        self.train_labels = torch.from_numpy(dataset.train_labels).to(devices.device, torch.int64)
        self.val_images = torch.from_numpy(pad(dataset.val_images)).to(devices.device)
        self.val_labels = torch.from_numpy(dataset.val_labels).to(devices.device, torch.int64)

        self.model = ConvNet(network, recipe.dropout, devices).to(devices.device, self.dtype)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        averages = recipe.ema_decay is not None
        self.ema = copy.deepcopy(self.model).requires_grad_(False) if averages else None
        self.optimizer = make_optimizer(recipe, self.model)
        loss_fn = partial(
            training_loss, self.model, recipe, self.compute_dtype, self.train_images, self.train_labels
        )
        on_grid = PRECISIONS[precision].on_grid
        update_fn = partial(update_parameters, self.optimizer, self.model, self.ema, on_grid)
        if (
            devices.device.type == "cuda"
        ):  # without this, the optimizer waits for the GPU to read its learning rate
            update_fn = compile_if_possible(update_fn)
        step_fn = partial(train_step, self.optimizer, devices, compile_if_possible(loss_fn), update_fn)
        steps = steps_per_epoch(recipe, len(dataset.train_images))
        self.loop = StepLoop(step_fn, steps, self.dtype, devices.device)

    def load(self, tensors: Tensors) -> None:
        """Set the state from canonical tensors."""
        load_tensors(self.model, tensors)
        if self.ema is not None:
            load_tensors(self.ema, tensors, "average/")
        for name, parameter in self.model.named_parameters():
            momentum = torch.from_numpy(tensors[f"momentum/{name}"])
            self.optimizer.state[parameter]["momentum_buffer"].copy_(momentum)

    def tensors(self) -> Tensors:
        """The state as canonical tensors."""
        momentum = {
            f"momentum/{name}": self.optimizer.state[parameter]["momentum_buffer"].numpy(force=True).copy()
            for name, parameter in self.model.named_parameters()
        }
        average = dump_tensors(self.ema, "average/") if self.ema is not None else {}
        return dump_tensors(self.model) | momentum | average

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; returns loss and number of correct predictions of each."""
        self.loop.load(plan.share(self.devices.index, self.devices.count))
        self.model.train()
        with self.devices.raise_if_lost():
            for _ in range(plan.steps):
                self.loop.step()
                advance(1)
            return self.loop.results(plan.steps)

    def predict(self) -> np.ndarray:
        """Logits (N, 10) of the validation images, by the averaged weights if there are any."""
        return self.val_logits().numpy(force=True)

    def val_logits(self) -> Tensor:
        """The logits of `predict`, on the device."""
        model = self.model if self.ema is None else self.ema
        batches = self.val_images.split(EVALUATION_BATCH)
        return torch.cat([predict_batch(model, self.compute_dtype, images) for images in batches])

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation images."""
        logits = self.val_logits()
        loss = functional.cross_entropy(logits, self.val_labels)
        accuracy = (logits.argmax(1) == self.val_labels).double().mean()
        return loss.item(), accuracy.item()


def main(options: TrainOptions) -> None:
    """Train as the command line says."""
    run(options, Trainer)


if __name__ == "__main__":
    run_command(TrainOptions, main, "python -m torch_impl.train")
