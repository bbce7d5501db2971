"""The images on which an exported file is verified, measured and calibrated."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipe.checkpoint import Checkpoint
from recipe.console import UserError
from recipe.data import Reader, load
from recipe.networks import IMAGE_SHAPE

RANDOM_IMAGES = 2_000


@dataclass(frozen=True, eq=False)
class Images:
    """Test images in the format of the file's input, their labels, and training images to calibrate with."""

    name: str  # "mnist", "digits" or "random"
    test: np.ndarray  # float32 (N, 1, 28, 28) in 0..1
    labels: np.ndarray | None  # uint8 (N,), of `test`; None for random images
    train: np.ndarray | None  # uint8 (M, 28, 28), to calibrate int8; None for random images
    note: str | None = None  # one line a person should see

    def accuracy(self, logits: np.ndarray) -> float | None:
        """The fraction of the test images that logits (N, 10) classify correctly; None without labels."""
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
    """The test images of the data that a run was trained on; random ones if they cannot be downloaded.

    Raises:
        UserError: `data_dir` or the variable MNIST_DIR names a faulty folder.
    """
    name = checkpoint.config.data.name
    try:
        dataset = load(name, data_dir, _reader(checkpoint))
    except UserError as error:
        if data_dir or os.environ.get("MNIST_DIR"):
            raise
        note = f"random images, so no accuracy: {error}"
        return Images("random", random_images(), None, None, note)
    return Images(name, to_unit(dataset.val_images), dataset.val_labels, dataset.train_images)


def _reader(checkpoint: Checkpoint) -> Reader:
    if checkpoint.config.framework == "jax":
        from jax_impl.data import read_mnist
    else:
        from torch_impl.data import read_mnist
    return read_mnist
