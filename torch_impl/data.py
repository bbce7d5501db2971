"""MNIST as torchvision reads it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from recipe.data import Arrays


def read_mnist(originals: dict[str, bytes]) -> Arrays:
    """Decode MNIST's original files.

    Raises:
        ImportError: torchvision is not installed, or not the build for this PyTorch.
    """
    try:
        from torchvision import datasets  # here, because a run with cached data does without it
    except RuntimeError as error:  # as when one of the two was built for CUDA and the other was not
        message = f"torchvision does not fit PyTorch: {error}; install both from one index"
        raise ImportError(message) from error
    with TemporaryDirectory(prefix="lockstep-") as root:
        raw = Path(root) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, content in originals.items():
            (raw / name).write_bytes(content)
        train, test = datasets.MNIST(root, train=True), datasets.MNIST(root, train=False)
    train_labels, test_labels = (part.targets.numpy().astype(np.uint8) for part in (train, test))
    return train.data.numpy(), train_labels, test.data.numpy(), test_labels
