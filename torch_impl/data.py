"""MNIST as torchvision reads it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np

from recipe.data import ORIGINALS, Dataset, check_reachable, read_originals

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # torchvision's first mirror; its second is plain http


def read_mnist(originals: Path | None) -> Dataset:
    """Decode MNIST, from a folder of the original files (see `recipe.data.read_originals`) or the network.

    Raises:
        UserError: a fault of the folder.
        OSError: the download failed.
        ImportError: torchvision is not installed, or not the build for this PyTorch.
    """
    try:
        from torchvision import datasets  # here, because a run with cached data does without it
    except RuntimeError as error:  # as when one of the two was built for CUDA and the other was not
        raise ImportError(
            f"torchvision does not fit PyTorch: {error}; install both from one index"
        ) from error

    class MNIST(datasets.MNIST):  # of the same name: torchvision calls the folder after the class
        mirrors: ClassVar = [URL]

    contents = read_originals(originals) if originals else None
    if contents is None:
        check_reachable(f"{URL}{ORIGINALS[-1].name}.gz")
    with TemporaryDirectory(prefix="lockstep-") as root:
        if contents is not None:
            raw = Path(root) / "MNIST" / "raw"
            raw.mkdir(parents=True)
            for name, content in contents.items():
                (raw / name).write_bytes(content)
        try:
            train = MNIST(root, train=True, download=contents is None)
        except RuntimeError as error:  # no mirror answered, or a wrong checksum
            raise OSError(str(error)) from error
        test = MNIST(root, train=False)
    return Dataset(
        "mnist",
        train_images=train.data.numpy(),
        train_labels=train.targets.numpy().astype(np.uint8),
        test_images=test.data.numpy(),
        test_labels=test.targets.numpy().astype(np.uint8),
    )
