"""MNIST as TensorFlow Datasets reads it, without TensorFlow."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from recipe.console import UserError
from recipe.data import ORIGINALS, Dataset, check_reachable, read_original, read_originals

URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"  # tfds's own, whose checksums it knows


def read_mnist(originals: Path | None) -> Dataset:
    """Decode MNIST, from a folder of the original files (see `recipe.data.read_originals`) or the network.

    Raises:
        UserError: a fault of the folder.
        OSError: the download failed.
        ImportError: tensorflow_datasets is not installed.
    """
    import tensorflow_datasets as tfds  # here, because a run with cached data does without it
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    # tfds's own builder needs TensorFlow to unpack the files and to encode PNG. Plain bytes need neither, and
    # 70,000 images are prepared and read back in a few seconds.
    class LockstepMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Tensor(shape=(28, 28), dtype=np.uint8, encoding="bytes"),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            if contents is None:
                paths = dl_manager.download({file.name: f"{URL}{file.name}.gz" for file in ORIGINALS})
                files = {file.name: read_original(Path(paths[file.name]), file) for file in ORIGINALS}
            else:
                files = contents
            arrays = [
                np.frombuffer(files[file.name], np.uint8, offset=file.header).reshape(file.shape)
                for file in ORIGINALS
            ]
            return {
                "train": self._generate_examples(*arrays[:2]),
                "test": self._generate_examples(*arrays[2:]),
            }

        def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict]]:
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": image, "label": int(label)}

    contents = read_originals(originals) if originals else None
    if contents is None:
        check_reachable(f"{URL}{ORIGINALS[-1].name}.gz")
    with _temporary_folder() as root:
        tfds.disable_progress_bar()
        builder: Any = LockstepMnist(data_dir=str(root), file_format="array_record")
        try:
            with redirect_stdout(StringIO()):  # it announces a folder that is gone a moment later
                builder.download_and_prepare(download_dir=str(root / "downloads"))
        except (DownloadError, NonMatchingChecksumError, UserError) as error:  # refused, or not the originals
            raise OSError(str(error)) from error
        train_images, train_labels = _read_all(builder.as_data_source(split="train"))
        test_images, test_labels = _read_all(builder.as_data_source(split="test"))
    return Dataset(
        "mnist",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder for everything, also for the empty folder that every tfds builder makes and forgets."""
    with tempfile.TemporaryDirectory(prefix="lockstep-") as root:
        before, tempfile.tempdir = tempfile.tempdir, root
        try:
            yield Path(root)
        finally:
            tempfile.tempdir = before


def _read_all(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a tfds data source, in order; in batches, which is much faster."""
    images, labels = np.empty((len(source), 28, 28), np.uint8), np.empty(len(source), np.uint8)
    for start in range(0, len(source), 4096):
        indices = range(start, min(start + 4096, len(source)))
        for index, example in zip(indices, source.__getitems__(list(indices)), strict=True):
            images[index], labels[index] = example["image"], example["label"]
    return images, labels
