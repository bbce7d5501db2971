"""The images that both implementations train on: MNIST or, where it is not available, scikit-learn's digits.

MNIST comes from its four original files, each verified by its SHA-256. The readers of `torch_impl` and
`jax_impl`, handed to `load`, decode them each with its own library and must give the same arrays, which are
then cached, so that later runs need neither library nor network.
"""

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.request import urlopen

import numpy as np

from recipe.checkpoint import write_atomically
from recipe.console import UserError, reason

MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels in 0..1; the rounded values that everybody uses

MNIST_FINGERPRINT = "59e723206924974d8a23ff880d084b6abc6932d67abc1370878f1a89543a046d"
HOLDOUT = {"mnist": 5_000, "digits": 300}  # images at the end of the training set
DIGITS_TRAIN = 1_437  # of 1,797
CACHE_FILE = "mnist.npz"
EVALUATION_BATCH = 1_000  # images at a time
GOAL = 0.994  # validation accuracy on MNIST: the task that the networks were published for
URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
DOWNLOAD_SECONDS = 10  # without an answer

# Training images, training labels, test images, test labels: uint8 (N, 28, 28) with background 0, and uint8
# (N,), 0 to 9, in the original files' order.
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class Original(NamedTuple):
    """One of the four files of LeCun, Cortes and Burges: an IDX header of 8 or 16 bytes, then the array."""

    name: str
    shape: tuple[int, ...]
    sha256: str  # of the decompressed file

    @property
    def header(self) -> int:
        """Length of the header in bytes: a magic number and each dimension, 4 bytes each."""
        return 4 * (1 + len(self.shape))

    @property
    def size(self) -> int:
        """Length of the decompressed file in bytes."""
        return self.header + prod(self.shape)


ORIGINALS = (
    Original(
        "train-images-idx3-ubyte",
        (60_000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    Original(
        "train-labels-idx1-ubyte",
        (60_000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    Original(
        "t10k-images-idx3-ubyte",
        (10_000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    Original(
        "t10k-labels-idx1-ubyte",
        (10_000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

ADVICE = (
    "give --data-dir (or MNIST_DIR) a folder with "
    + ", ".join(original.name for original in ORIGINALS)
    + ", each gzipped (.gz) or not"
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images to train on and images to validate on; types as in `Arrays`."""

    name: Literal["mnist", "digits"]
    fingerprint: str  # of all four arrays, see `fingerprint`
    train_images: np.ndarray
    train_labels: np.ndarray
    val_images: np.ndarray
    val_labels: np.ndarray
    note: str | None = None  # one line: why it is the digits, or what is wrong with the cache


# Decodes the contents of the `ORIGINALS`, by name. It may raise ImportError where its library is missing.
Reader = Callable[[dict[str, bytes]], Arrays]


def load(
    choice: str, data_dir: Path | None, reader: Reader, split: Literal["test", "holdout"] = "test"
) -> Dataset:
    """Load the images of a run: from `data_dir`, the cache, the network or, for "auto", the digits.

    Args:
        choice: "auto", "mnist" or "digits". "auto" takes the digits only if MNIST is not
            available; the other two accept nothing else.
        data_dir: folder of the originals, by default the variable ``MNIST_DIR``. If there is one, its files
            must be faultless, under "auto" too; the cache then only saves decoding them. Unused for "digits".
        reader: ``torch_impl.data.read_mnist`` or ``jax_impl.data.read_mnist``.
        split: "test" validates on the test images. "holdout", for choosing settings, leaves them alone: the
            last training images (see `HOLDOUT`) validate and are not trained on.

    Raises:
        UserError: a faulty folder, a damaged cache that cannot be rebuilt, or no MNIST for "mnist".
    """
    if choice == "digits":
        return _split("digits", load_digits(), split, None)
    if data_dir is None and os.environ.get("MNIST_DIR"):
        data_dir = Path(os.environ["MNIST_DIR"])
    originals = None if data_dir is None else read_originals(_expand(data_dir))
    cache, note = cache_folder() / CACHE_FILE, None
    try:
        return _split("mnist", _read_cache(cache), split, None)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for a damaged file
        note = f"the cached {cache} is damaged ({reason(error)})"

    try:
        arrays = reader(originals or download_originals())
    except (OSError, ImportError) as error:
        if data_dir is not None:
            raise UserError(f"cannot decode the files in {data_dir}: {reason(error)}") from error
        why = f"MNIST is not cached and cannot be downloaded ({reason(error)})"
        if note:
            raise UserError(
                f"{note} and cannot be rebuilt ({reason(error)}); delete it, or {ADVICE}"
            ) from error
        if choice == "mnist":
            raise UserError(f"{why}; {ADVICE}") from error
        return _split(
            "digits",
            load_digits(),
            split,
            f"{why}, so this trains on scikit-learn's digits; for MNIST, {ADVICE}",
        )
    if fingerprint(arrays) != MNIST_FINGERPRINT:  # the files were verified, so the decoder is at fault
        raise RuntimeError(f"{reader.__module__} decoded MNIST to other arrays than {MNIST_FINGERPRINT}")
    try:
        _write_cache(cache, arrays)
        note = note and f"{note}; rebuilt"
    except UserError as error:  # the run has its data; only the next one will have to decode again
        note = f"{note or 'MNIST is not cached'}: {error}"
    return _split("mnist", arrays, split, note)


def fingerprint(arrays: Arrays) -> str:
    """SHA-256, in hex, over each array's name, dtype, shape and bytes, in the order of `ARRAYS`."""
    digest = hashlib.sha256()
    for name, array in zip(ARRAYS, arrays, strict=True):
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _split(
    name: Literal["mnist", "digits"], arrays: Arrays, split: Literal["test", "holdout"], note: str | None
) -> Dataset:
    images, labels, test_images, test_labels = arrays
    kept = len(images) - HOLDOUT[name]
    parts = {
        "test": (images, labels, test_images, test_labels),
        "holdout": (images[:kept], labels[:kept], images[kept:], labels[kept:]),
    }
    return Dataset(name, fingerprint(arrays), *parts[split], note)


# ------------------------------------------------------------ the original files


def read_originals(folder: Path) -> dict[str, bytes]:
    """Read the four originals, decompressed, by name, each verified by its SHA-256.

    They may be gzipped or not, and lie in the folder itself or in its ``MNIST/raw`` as torchvision has it.

    Raises:
        UserError: a file is missing, unreadable, truncated or altered.
    """
    contents = {}
    for original in ORIGINALS:
        path = folder
        try:
            names = (original.name, f"{original.name}.gz")
            places = [parent / name for parent in (folder, folder / "MNIST" / "raw") for name in names]
            path = next((place for place in places if place.is_file()), None)
            if path is None:
                raise UserError(f"there is no {original.name} in {folder} or its MNIST/raw; {ADVICE}")
            with path.open("rb") as file:
                contents[original.name] = _read_original(file, original)
        except UserError:
            raise
        except (OSError, EOFError, zlib.error, ValueError) as error:  # gzip's BadGzipFile is an OSError
            raise UserError(f"{path} is not the original ({reason(error)}); fetch it again") from None
    return contents


def download_originals() -> dict[str, bytes]:
    """Download the four originals: decompressed, by name, each verified by its SHA-256.

    Raises:
        OSError: no network, or not the originals.
    """
    contents = {}
    for original in ORIGINALS:
        try:
            with urlopen(f"{URL}{original.name}.gz", timeout=DOWNLOAD_SECONDS) as answer:
                contents[original.name] = _read_original(io.BytesIO(answer.read(original.size)), original)
        except (HTTPException, EOFError, zlib.error, ValueError) as error:
            raise OSError(f"{original.name}: {reason(error)}") from error
    return contents


def _read_original(file: Any, original: Original) -> bytes:
    """Read a file, gzipped or not; never more than the original's length, whatever it says of itself.

    Raises:
        ValueError: it is not the original.
    """
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    content = (gzip.GzipFile(fileobj=file) if gzipped else file).read(original.size + 1)
    if hashlib.sha256(content).hexdigest() != original.sha256:
        raise ValueError(f"{len(content):,} bytes of {original.size:,} and another SHA-256")
    return content


# ------------------------------------------------------------ the cache


def cache_folder() -> Path:
    """Where decoded arrays are kept: ``LOCKSTEP_CACHE``, or ``lockstep-mnist`` in the user's cache folder."""
    if own := os.environ.get("LOCKSTEP_CACHE"):
        return _expand(Path(own))
    return _expand(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "lockstep-mnist"


def _expand(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"the home folder in {path} is not known; give the whole path") from None


def _read_cache(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        train_images, train_labels, test_images, test_labels = (file[name] for name in ARRAYS)
    arrays = train_images, train_labels, test_images, test_labels
    if fingerprint(arrays) != MNIST_FINGERPRINT:
        raise ValueError("its SHA-256 is another")
    return arrays


def _write_cache(path: Path, arrays: Arrays) -> None:
    archive = io.BytesIO()
    np.savez_compressed(archive, **dict(zip(ARRAYS, arrays, strict=True)))  # 11 MB, not 55
    write_atomically(path, archive.getvalue())


# ------------------------------------------------------------ the digits


def load_digits() -> Arrays:
    """Return scikit-learn's 1,797 scans of 8x8 pixels with values 0 to 16, enlarged to look like MNIST.

    Each becomes 20x20 pixels by bilinear interpolation, the size of an MNIST digit, centred in 28x28. All
    arithmetic is in integers, so the result is the same everywhere. A fixed permutation comes before the
    split, because the scans are ordered by writer.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load_scans
    except ImportError as error:
        raise UserError("the digits dataset needs scikit-learn: pip install scikit-learn") from error
    scans = load_scans()
    images_8x8: np.ndarray = scans.images.astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]
    labels: np.ndarray = scans.target.astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]

    # Row i is where target pixel i's centre lies among the source's, (i + 1/2) 8/20 - 1/2, in tenths.
    tenths = np.clip(4 * np.arange(20) - 3, 0, 70)
    weights = np.maximum(10 - np.abs(tenths[:, None] - 10 * np.arange(8)), 0)  # (20, 8), each row sums to 10
    images_20x20 = weights @ images_8x8 @ weights.T  # 0 to 16 * 10 * 10
    images = np.pad((images_20x20 * 255 + 800) // 1600, ((0, 0), (4, 4), (4, 4))).astype(np.uint8)

    order = np.argsort(np.random.Philox(key=0).random_raw(len(images)), kind="stable")
    train, test = order[:DIGITS_TRAIN], order[DIGITS_TRAIN:]
    return images[train], labels[train], images[test], labels[test]
