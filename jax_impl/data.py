"""MNIST as TensorFlow Datasets reads it, without TensorFlow."""

import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

from recipe.data import ORIGINALS, Arrays


def read_mnist(originals: dict[str, bytes]) -> Arrays:
    """Decode MNIST's original files.

    Raises:
        ImportError: tensorflow_datasets is not installed.
    """
    import tensorflow_datasets as tfds  # here, because a run with cached data does without it

    images, labels, test_images, test_labels = (
        np.frombuffer(originals[file.name], np.uint8, offset=file.header).reshape(file.shape)
        for file in ORIGINALS
    )

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

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {
                "train": self._generate_examples(images, labels),
                "test": self._generate_examples(test_images, test_labels),
            }

        def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict]]:
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": image, "label": int(label)}

    with tempfile.TemporaryDirectory(prefix="lockstep-") as root:
        before, tempfile.tempdir = (
            tempfile.tempdir,
            root,
        )  # every builder makes an empty folder and forgets it
        try:
            tfds.disable_progress_bar()
            builder: Any = LockstepMnist(data_dir=root, file_format="array_record")
            with redirect_stdout(StringIO()):  # it announces a folder that is gone a moment later
                builder.download_and_prepare(download_dir=root)
        finally:
            tempfile.tempdir = before
        train, test = (_read_all(builder.as_data_source(split=split)) for split in ("train", "test"))
    return *train, *test


def _read_all(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a tfds data source, in order; in batches, which is much faster."""
    images, labels = np.empty((len(source), 28, 28), np.uint8), np.empty(len(source), np.uint8)
    for start in range(0, len(source), 4096):
        indices = range(start, min(start + 4096, len(source)))
        for index, example in zip(indices, source.__getitems__(list(indices)), strict=True):
            images[index], labels[index] = example["image"], example["label"]
    return images, labels
