"""Train a network in PyTorch: ``python -m torch_impl.train --help``."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._functorch import config as partitioner
from torch.nn import functional

from recipe.checkpoint import Tensors
from recipe.data import Split
from recipe.errors import UserError
from recipe.networks import Network
from recipe.options import PRECISIONS, TrainOptions, run_command
from recipe.plan import Plan, steps_per_epoch
from recipe.recipes import Recipe
from recipe.run import Framework, train
from recipe.warp import MEAN, SIDE, STD, UNIT, crop, pad, warp
from torch_impl.compile import compile_if_possible, keep_freed_memory, record_if_possible
from torch_impl.data import read_mnist
from torch_impl.model import ConvNet, dump_tensors, load_tensors

EVALUATION_BATCH = 1000


class Steps(NamedTuple):
    """What the steps of an epoch are given and what they leave; always the same memory, for CUDA graphs."""

    number: Tensor  # int64 (1,), of the step that is next
    given: tuple[Tensor, ...]  # images, maps, keys, rates, decays, as in `recipe.plan.Plan`
    losses: Tensor  # (S,), of many seeds (S, seeds)
    correct: Tensor  # int64, alike


def select_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def configure() -> None:
    """Set PyTorch up, for the whole process."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # not TF32, which has ten bits
    torch.backends.cudnn.deterministic = True
    # Masks are computed again in the backward pass: compiled code for CPUs stores booleans one by one.
    partitioner.ban_recompute_used_far_apart = False
    partitioner.ban_recompute_long_fusible_chains = False
    keep_freed_memory()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA's compiler but no CUDA


class Trainer:
    """Model, optimizer and data on one device; see `recipe.run.Trainer`.

    `torch_impl.seeds` gives it another model and another loss.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        split: Split,
        device: str,
        precision: str,
        model: ConvNet | None = None,
        loss: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ):
        self.network, self.recipe = network, recipe
        self.place = place = select_device(device)
        self.dtype, compute = (getattr(torch, dtype) for dtype in PRECISIONS[precision])
        self.compute: torch.dtype = compute
        self.device = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
        configure()
        self.model = (model or ConvNet(network, recipe.dropout)).to(place, self.dtype)
        if not self.model.products:
            self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = copy.deepcopy(self.model).requires_grad_(False) if recipe.ema is not None else None
        self.rate = torch.zeros((), dtype=self.dtype, device=place)
        self.optimizer = make_optimizer(self.model, recipe, self.rate)
        self.last_gradients = [torch.zeros_like(parameter) for parameter in self.model.parameters()]
        self.train_images = torch.from_numpy(pad(split.train_images)).to(place)
        self.train_labels = torch.from_numpy(split.train_labels).to(place, torch.int64)
        self.val_images = torch.from_numpy(pad(split.val_images)).to(place)
        self.val_labels = torch.from_numpy(split.val_labels).to(place, torch.int64)
        self.steps: Steps | None = None
        loss = partial(loss or training_loss, self.model, recipe, self.compute)
        self.loss = compile_if_possible(partial(loss, self.train_images, self.train_labels))
        update = partial(update_parameters, self.optimizer, self.model, self.average)
        self.update = compile_if_possible(update) if place.type == "cuda" else update
        self.step = record_if_possible(self.train_step) if place.type == "cuda" else self.train_step
        self.images = len(split.train_images)

    def load(self, tensors: Tensors) -> None:
        """Take over a canonical state."""
        load_tensors(self.model, tensors)
        if self.average is not None:
            load_tensors(self.average, tensors, "average/")
        for name, parameter in self.model.named_parameters():
            momentum = torch.from_numpy(tensors[f"momentum/{name}"])
            self.optimizer.state[parameter]["momentum_buffer"].copy_(momentum)

    def tensors(self) -> Tensors:
        """The canonical state."""
        momentum = {
            f"momentum/{name}": self.optimizer.state[parameter]["momentum_buffer"].numpy(force=True).copy()
            for name, parameter in self.model.named_parameters()
        }
        average = dump_tensors(self.average, "average/") if self.average is not None else {}
        return dump_tensors(self.model) | momentum | average

    def gradients(self) -> Tensors:
        """The gradients of the last step, by canonical name."""
        names = (name for name, _ in self.model.named_parameters())
        return {
            name: gradient.numpy(force=True).copy()
            for name, gradient in zip(names, self.last_gradients, strict=True)
        }

    def train(self, plan: Plan, done: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; returns loss and number of correct predictions of each."""
        arrays = (plan.images, plan.maps, plan.keys, plan.rates, plan.decays)
        given = [torch.from_numpy(array) for array in arrays]
        if self.steps is None:
            self.steps = make_steps(given, steps_per_epoch(self.recipe, self.images), self.dtype, self.place)
        steps = self.steps
        for kept, new in zip(steps.given, given, strict=True):
            kept[: len(plan)] = new
        steps.number.zero_()
        self.model.train()
        for _ in range(len(plan)):  # nothing in it waits for a GPU
            self.step()
            done(1)
        losses, correct = (found[: len(plan)].numpy(force=True) for found in (steps.losses, steps.correct))
        return losses.astype(np.float64), correct.copy()

    def train_step(self) -> None:
        """Take the step whose number is in ``steps``."""
        assert self.steps is not None
        number = self.steps.number
        positions, maps, keys, rate, decay = (each.index_select(0, number)[0] for each in self.steps.given)
        self.optimizer.zero_grad()
        loss, correct = self.loss(positions, maps, keys)
        loss.backward(torch.ones_like(loss))  # of many seeds, each loss has its own parameters
        # SGD with Nesterov momentum leaves the gradients changed.
        gradients = [parameter.grad for parameter in self.model.parameters()]
        torch._foreach_copy_(self.last_gradients, gradients)  # pyright: ignore
        self.rate.copy_(rate)
        self.update(decay)
        self.steps.losses.index_copy_(0, number, loss.detach()[None])
        self.steps.correct.index_copy_(0, number, correct[None])
        number += 1

    def predict(self) -> np.ndarray:
        """Logits (N, 10) of the validation images, by the averaged weights if there are any."""
        return self.val_logits().numpy(force=True)

    def val_logits(self, batch: int = EVALUATION_BATCH) -> Tensor:
        """`predict`'s logits on the device, of so many images at once."""
        model = self.model if self.average is None else self.average
        model.eval()
        with torch.inference_mode():
            batches = self.val_images.split(batch)
            return torch.cat([model(normalise(crop(images), 255, self.compute)) for images in batches])

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation images."""
        logits = self.val_logits()
        loss = functional.cross_entropy(logits, self.val_labels)
        accuracy = (logits.argmax(1) == self.val_labels).double().mean()
        return loss.item(), accuracy.item()


def make_optimizer(model: ConvNet, recipe: Recipe, rate: Tensor) -> torch.optim.Optimizer:
    """SGD with momentum, its learning rate in a tensor; weight decay on the convolution kernels only."""
    kernels = [p for name, p in model.named_parameters() if name in model.network.kernels]
    others = [p for name, p in model.named_parameters() if name not in model.network.kernels]
    groups = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": others}]
    optimizer = torch.optim.SGD(groups, rate, recipe.momentum, nesterov=recipe.nesterov, foreach=True)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def normalise(pixels: Tensor, white: int, dtype: torch.dtype) -> Tensor:
    """Integers (N, 28, 28), 0 to ``white``, to normalised images (N, 1, 28, 28)."""
    return (pixels.to(dtype) * (1 / (white * STD)) - MEAN / STD)[:, None]


def prepare_images(padded: Tensor, positions: Tensor, maps: Tensor, dtype: torch.dtype) -> Tensor:
    """One batch of training images, warped if there are maps: (B, 1, 28, 28)."""
    if len(maps) == 0:
        return normalise(crop(padded[positions]), 255, dtype)
    side = torch.arange(SIDE, dtype=torch.int32, device=maps.device)
    return normalise(warp(padded, maps, positions[:, None, None], side[:, None], side), UNIT, dtype)


def make_steps(given: list[Tensor], length: int, dtype: torch.dtype, place: torch.device) -> Steps:
    """Room on the device for the steps of an epoch, each given the like of these."""
    room = [
        torch.zeros(
            (length, *each.shape[1:]), dtype=dtype if each.is_floating_point() else each.dtype, device=place
        )
        for each in given
    ]
    shape = (length, *given[0].shape[1:-1])  # of many seeds, images are (S, seeds, B)
    losses = torch.zeros(shape, dtype=dtype, device=place)
    correct = torch.zeros(shape, dtype=torch.int64, device=place)
    return Steps(torch.zeros(1, dtype=torch.int64, device=place), tuple(room), losses, correct)


def training_loss(
    model: ConvNet,
    recipe: Recipe,
    dtype: torch.dtype,
    padded: Tensor,
    labels: Tensor,
    positions: Tensor,
    maps: Tensor,
    keys: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of one batch of the training set and the number of correct predictions."""
    images = prepare_images(padded, positions, maps, dtype)
    logits, wanted = model(images, keys), labels[positions]
    loss = functional.cross_entropy(logits, wanted, label_smoothing=recipe.label_smoothing)
    return loss, (logits.argmax(1) == wanted).sum()


def update_parameters(
    optimizer: torch.optim.Optimizer, model: nn.Module, average: nn.Module | None, decay: Tensor
) -> None:
    """Take the optimizer's step.

    Where there is an average, average <- decay average + (1 - decay) model, for parameters and statistics.
    """
    optimizer.step()
    if average is None:
        return
    with torch.no_grad():
        ours, theirs = _floats(average), _floats(model)
        torch._foreach_lerp_(ours, theirs, 1 - decay)  # pyright: ignore


def _floats(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]


FRAMEWORK = Framework("torch", ("torch", "torchvision", "numpy"), Trainer, read_mnist)


def main(options: TrainOptions) -> None:
    """Train as the command line says."""
    train(options, FRAMEWORK)


if __name__ == "__main__":
    run_command(TrainOptions, main, "python -m torch_impl.train")
