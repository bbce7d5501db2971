"""Train many seeds at once in PyTorch, as one network whose convolutions are grouped by seed.

On a GPU a single one of these networks leaves most of the device idle. `torch.func.vmap` over the seeds would
come to the same grouped convolutions; written out, everything else is `torch_impl.train` as it is.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recipe.checkpoint import Tensors
from recipe.data import Split
from recipe.networks import Network
from recipe.plan import Plan
from recipe.recipes import Recipe
from recipe.seeds import stack_plans
from recipe.warp import SIDE
from torch_impl.model import ConvNet
from torch_impl.train import Trainer, prepare_images, select_device

EVALUATION_BATCH = 2000  # images at once, of all seeds together


class SeedsTrainer:
    """Models and optimizers of many seeds and one copy of the data on one device.

    Args:
        network: of every seed.
        recipe: of every seed.
        split: the data.
        device: auto, cpu or cuda.
        precision: see `recipe.options.PRECISIONS`.
        seeds: how many.
        products: compute convolutions as matrix products; None: on a GPU.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        split: Split,
        device: str,
        precision: str,
        seeds: int,
        products: bool | None = None,
    ):
        on_gpu = select_device(device).type == "cuda"
        model = ConvNet(network, recipe.dropout, seeds, on_gpu if products is None else products)
        self.seeds = seeds
        self.trainer = Trainer(network, recipe, split, device, precision, model, seeds_loss)
        self.device = self.trainer.device

    def load(self, tensors: Sequence[Tensors]) -> None:
        """Take over the canonical state of each seed."""
        assert len(tensors) == self.seeds
        self.trainer.load({name: np.concatenate([each[name] for each in tensors]) for name in tensors[0]})

    def tensors(self) -> list[Tensors]:
        """The canonical state of each seed."""
        joined = self.trainer.tensors()
        apart = {name: np.split(tensor, self.seeds) for name, tensor in joined.items()}
        return [{name: tensors[seed] for name, tensors in apart.items()} for seed in range(self.seeds)]

    def train(self, plans: Sequence[Plan]) -> tuple[np.ndarray, np.ndarray]:
        """Take the steps of one plan a seed; returns loss and number of correct predictions: (S, seeds)."""
        assert len(plans) == self.seeds
        return self.trainer.train(stack_plans(plans), lambda _: None)

    def predict(self) -> np.ndarray:
        """Logits (seeds, N, 10) of the validation images, by the averaged weights if there are any."""
        return self.val_logits().numpy(force=True)

    def val_logits(self) -> Tensor:
        """`predict`'s logits on the device."""
        joined = self.trainer.val_logits(max(1, EVALUATION_BATCH // self.seeds))
        return joined.unflatten(1, (self.seeds, -1)).transpose(0, 1)

    def evaluate(self) -> list[tuple[float, float]]:
        """Loss and accuracy of each seed on the validation images."""
        logits, labels = self.val_logits(), self.trainer.val_labels.expand(self.seeds, -1)
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
        accuracies = (logits.argmax(2) == labels).double().mean(1)
        return list(zip(losses.tolist(), accuracies.tolist(), strict=True))


def seeds_loss(
    model: ConvNet,
    recipe: Recipe,
    dtype: torch.dtype,
    padded: Tensor,
    labels: Tensor,
    positions: Tensor,
    maps: Tensor,
    keys: Tensor,
) -> tuple[Tensor, Tensor]:
    """`torch_impl.train.training_loss` of each seed, whose axis comes first in positions, maps and keys."""
    images = prepare_images(padded, positions.flatten(), maps.flatten(0, 1), dtype)
    images = images.view(*positions.shape, SIDE, SIDE).transpose(0, 1)
    logits = model(images, keys).unflatten(1, (model.seeds, -1)).permute(1, 2, 0)  # (seeds, 10, B)
    wanted = labels[positions]
    losses = functional.cross_entropy(
        logits, wanted, label_smoothing=recipe.label_smoothing, reduction="none"
    )
    return losses.mean(1), (logits.argmax(1) == wanted).sum(1)
