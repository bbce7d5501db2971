"""The options of the training programs, and those that other commands share with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from recipe.cli import check_range, optional
from recipe.networks import NETWORKS
from recipe.recipes import RECIPES

NETWORK = "|".join([*NETWORKS, "LAYERS"])
MAX_EPOCHS, MAX_BATCH, MAX_SEED, MAX_DEVICES = 1000, 10_000, 2**63 - 1, 1024

Dataset = Literal["auto", "mnist", "digits"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "float64", "bfloat16", "bitwise"]
SplitName = Literal["test", "holdout"]


@dataclass(frozen=True)
class DataOptions:
    """Where the images come from."""

    dataset: Dataset = "auto"
    """auto: MNIST if it is available, else scikit-learn's digits."""
    data_dir: Annotated[Path | None, optional("DIR")] = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""


@dataclass(frozen=True)
class DeviceOptions:
    """Where the arithmetic is done."""

    device: Device = "auto"
    """auto: the GPU if there is one."""


@dataclass(frozen=True)
class TrainOptions(DeviceOptions, DataOptions):
    """Train one network by one recipe. The same flags and files in both frameworks."""

    network: Annotated[str | None, optional(NETWORK, "net10040")] = None
    """Which network to train: a name, or a list of layers in quotes. 16 is a 3x3 convolution to 16 channels,
    16x1 a 1x1 one, 16@a shares its weights with every other @a; batch norm and ReLU follow each but the last.
    Further words: pool, avgpool, average, dropout, and bias right after the last convolution."""
    recipe: Annotated[str | None, optional("|".join(RECIPES), "tuned")] = None
    """Which hyperparameters to use."""
    epochs: Annotated[int | None, optional("INT", "the recipe's")] = None
    """Length of the schedule."""
    batch: Annotated[int | None, optional("INT", "the recipe's")] = None
    """Images in each step."""
    seed: Annotated[int | None, optional("INT", "0")] = None
    """Decides initial weights, image order, augmentation and dropout."""
    split: Annotated[SplitName | None, optional("test|holdout", "test")] = None
    """Validate on the test images or on the last training images."""
    precision: Annotated[Precision | None, optional("float32|float64|bfloat16|bitwise", "float32")] = None
    """Type of the arithmetic. bitwise: float64, with equal bits everywhere."""
    devices: Annotated[int | None, optional("INT", "1")] = None
    """Train on this many devices at once; each takes its share of every batch."""
    max_steps: Annotated[int | None, optional("INT")] = None
    """Stop after this step of the schedule, evaluate and save."""
    out: Annotated[Path | None, optional("DIR", "runs/FRAMEWORK-NETWORK-RECIPE-SEED")] = None
    """Folder for the run's files."""
    resume: Annotated[Path | None, optional("RUN")] = None
    """Go on with a run: its folder or its checkpoint, of either framework."""

    def validate(self) -> None:
        """Check the numbers.

        Raises:
            UserError: naming the first faulty option.
        """
        check_range("--epochs", self.epochs, 1, MAX_EPOCHS)
        check_range("--batch", self.batch, 1, MAX_BATCH)
        check_range("--seed", self.seed, 0, MAX_SEED)
        check_range("--devices", self.devices, 1, MAX_DEVICES)
        check_range("--max-steps", self.max_steps, 1, 10**9)
