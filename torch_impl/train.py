"""Train a network in PyTorch: ``python -m torch_impl.train --help``."""

import copy
import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recipe import report
from recipe.checkpoint import Tensors
from recipe.data import Split
from recipe.errors import UserError
from recipe.networks import Network
from recipe.options import TrainOptions, run_command
from recipe.plan import Plan
from recipe.recipes import Recipe
from recipe.run import Framework, train
from recipe.warp import MEAN, SIDE, STD, UNIT, crop, pad, warp
from torch_impl.data import read_mnist
from torch_impl.model import ConvNet, dump_tensors, load_tensors

EVALUATION_BATCH = 1000


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
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA's compiler but no CUDA


class Trainer:
    """Model, optimizer and data on one device; see `recipe.run.Trainer`."""

    def __init__(self, network: Network, recipe: Recipe, split: Split, device: str, precision: str):
        self.network, self.recipe = network, recipe
        self.place = place = select_device(device)
        self.dtype = getattr(torch, precision)
        self.device = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
        configure()
        self.model = ConvNet(network, recipe.dropout).to(place, self.dtype)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = copy.deepcopy(self.model).requires_grad_(False) if recipe.ema is not None else None
        self.optimizer = make_optimizer(self.model, recipe)
        self.train_images = torch.from_numpy(pad(split.train_images)).to(place)
        self.train_labels = torch.from_numpy(split.train_labels).to(place, torch.int64)
        self.val_images = torch.from_numpy(pad(split.val_images)).to(place)
        self.val_labels = torch.from_numpy(split.val_labels).to(place, torch.int64)
        self.loss = compile_if_possible(
            partial(training_loss, self.model, recipe, self.train_images, self.train_labels)
        )

    def load(self, tensors: Tensors) -> None:
        """Take over a canonical state."""
        load_tensors(self.model, tensors)
        if self.average is not None:
            load_tensors(self.average, tensors, "average/")
        for name, parameter in self.model.named_parameters():
            momentum = torch.from_numpy(tensors[f"momentum/{name}"]).to(self.place, self.dtype)
            self.optimizer.state[parameter]["momentum_buffer"] = momentum.clone(
                memory_format=torch.preserve_format
            )

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
        return {
            name: parameter.grad.numpy(force=True).copy()
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }

    def train(self, plan: Plan, done: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; returns loss and number of correct predictions of each."""
        positions = torch.from_numpy(plan.images).to(self.place)
        maps = torch.from_numpy(plan.maps).to(self.place)
        keys = torch.from_numpy(plan.keys).to(self.place)
        losses = torch.empty(len(plan), dtype=self.dtype, device=self.place)
        correct = torch.empty(len(plan), dtype=torch.int64, device=self.place)
        self.model.train()
        for step in range(len(plan)):
            loss, correct[step] = self.loss(positions[step], maps[step], keys[step])
            losses[step] = loss.detach()
            self.optimizer.zero_grad()
            loss.backward()
            for group in self.optimizer.param_groups:
                group["lr"] = float(plan.rates[step])
            self.optimizer.step()
            if self.average is not None:
                update_average(self.average, self.model, float(plan.decays[step]))
            done(1)
        return losses.numpy(force=True).astype(np.float64), correct.numpy(force=True)

    def predict(self) -> np.ndarray:
        """Logits (N, 10) of the validation images, by the averaged weights if there are any."""
        return self.val_logits().numpy(force=True)

    def val_logits(self) -> Tensor:
        """`predict`'s logits on the device."""
        model = self.model if self.average is None else self.average
        model.eval()
        with torch.inference_mode():
            batches = self.val_images.split(EVALUATION_BATCH)
            return torch.cat([model(normalise(crop(batch), 255, self.dtype)) for batch in batches])

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation images."""
        logits = self.val_logits()
        loss = functional.cross_entropy(logits, self.val_labels)
        accuracy = (logits.argmax(1) == self.val_labels).double().mean()
        return loss.item(), accuracy.item()


def make_optimizer(model: ConvNet, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum; weight decay on the convolution kernels only."""
    kernels = [p for name, p in model.named_parameters() if name in model.network.kernels]
    others = [p for name, p in model.named_parameters() if name not in model.network.kernels]
    groups = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": others}]
    return torch.optim.SGD(groups, recipe.peak_rate, recipe.momentum, nesterov=recipe.nesterov)


def normalise(pixels: Tensor, white: int, dtype: torch.dtype) -> Tensor:
    """Integers (N, 28, 28), 0 to ``white``, to normalised images (N, 1, 28, 28)."""
    return (pixels.to(dtype) * (1 / (white * STD)) - MEAN / STD)[:, None]


def prepare_images(padded: Tensor, positions: Tensor, maps: Tensor, dtype: torch.dtype) -> Tensor:
    """One batch of training images, warped if there are maps: (B, 1, 28, 28)."""
    if len(maps) == 0:
        return normalise(crop(padded[positions]), 255, dtype)
    side = torch.arange(SIDE, dtype=torch.int32, device=maps.device)
    return normalise(warp(padded, maps, positions[:, None, None], side[:, None], side), UNIT, dtype)


def training_loss(
    model: ConvNet,
    recipe: Recipe,
    padded: Tensor,
    labels: Tensor,
    positions: Tensor,
    maps: Tensor,
    keys: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of one batch of the training set and the number of correct predictions."""
    images = prepare_images(padded, positions, maps, next(model.parameters()).dtype)
    logits, wanted = model(images, keys), labels[positions]
    loss = functional.cross_entropy(logits, wanted, label_smoothing=recipe.label_smoothing)
    return loss, (logits.argmax(1) == wanted).sum()


def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) model, for parameters and running statistics."""
    with torch.no_grad():
        ours, theirs = _floats(average), _floats(model)
        torch._foreach_lerp_(ours, theirs, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]


def _floats(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]


def compile_if_possible(
    function: Callable[..., tuple[Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """``torch.compile``, or the function itself, with a notice, where there is no working compiler."""
    from torch._dynamo.exc import TorchDynamoException  # here, because it takes a second to import

    compiled = torch.compile(function, dynamic=False)
    chosen = None

    def first_try(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal chosen
        if chosen is None:
            try:
                result = compiled(*arguments)
            except (TorchDynamoException, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0]
                report.show_notice(f"torch.compile does not work here, training goes on without it: {reason}")
                chosen = function
            else:
                chosen = compiled
                return result
        return chosen(*arguments)

    return first_try


FRAMEWORK = Framework("torch", ("torch", "torchvision", "numpy"), Trainer, read_mnist)


def main(options: TrainOptions) -> None:
    """Train as the command line says."""
    train(options, FRAMEWORK)


if __name__ == "__main__":
    run_command(TrainOptions, main, "python -m torch_impl.train")
