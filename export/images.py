"""The images that an exported file is verified, measured and calibrated on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipe.checkpoint import Checkpoint
from recipe.data import Dataset, Reader, load
from recipe.errors import UserError
from recipe.networks import IMAGE_SHAPE
from recipe.options import check_choice

RANDOM_IMAGES = 2_000


@dataclass(frozen=True, eq=False)
class Images:
    """Float32 (N, 1, 28, 28) in 0..1, as the file takes them."""

    name: str  # "mnist", "digits" or "random"
    test: np.ndarray
    labels: np.ndarray | None  # uint8 (N,), of `test`; None for random images
    train: np.ndarray | None  # uint8 (M, 28, 28), to calibrate int8; None for random images
    note: str | None = None  # one line a person should see

    def accuracy(self, logits: np.ndarray) -> float | None:
        """Fraction of the test images that logits (N, 10) classify rightly; None without labels."""
        return None if self.labels is None else float((logits.argmax(1) == self.labels).mean())


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """uint8 (N, 28, 28) to float32 (N, 1, 28, 28) in 0..1."""
    return pixels[:, None].astype(np.float32) / np.float32(255)


def random_images(count: int = RANDOM_IMAGES, seed: int = 0) -> np.ndarray:
    """Strokes of random grey on black: float32 (count, 1, 28, 28) in 0..1, as smooth as digits are."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 1, 7, 7), dtype=np.float32)
    fine = np.kron(coarse, np.ones((4, 4), np.float32))
    return np.clip(2 * fine + rng.random((count, *IMAGE_SHAPE), dtype=np.float32) - 1.5, 0, 1)


def load_images(checkpoint: Checkpoint, data_dir: Path | None) -> Images:
    """The test images of the data that a run was trained on; random ones where they cannot be had.

    Raises:
        UserError: `data_dir` is given and faulty.
    """
    checkpoint.check_config("data.name", "framework")
    wanted = checkpoint.config["data"]["name"]
    check_choice("the checkpoint's data.name", wanted, "mnist", "digits")
    try:
        dataset = load(wanted, data_dir, _reader(checkpoint)).dataset
    except UserError as error:
        if data_dir is not None:
            raise
        note = f"random images, so no accuracy: {error}"
        return Images("random", random_images(), None, None, note)
    return from_dataset(dataset)


def from_dataset(dataset: Dataset) -> Images:
    """The images of a dataset."""
    return Images(dataset.name, to_unit(dataset.test_images), dataset.test_labels, dataset.train_images)


def _reader(checkpoint: Checkpoint) -> Reader:
    if checkpoint.config["framework"] == "jax":
        from jax_impl.data import read_mnist
    else:
        from torch_impl.data import read_mnist
    return read_mnist
