"""The images that both implementations train on: MNIST or, where it is not available, scikit-learn's digits.

All readers give one canonical form (see `Dataset`) with one fingerprint. The readers of
`torch_impl` and `jax_impl`, handed to `load`, decode the four original files each with its own library; the
decoded arrays are then cached, so that later runs need neither library nor network.
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
from typing import NamedTuple
from urllib.request import Request, urlopen
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
from numpy.lib import format as npy

from recipe.checkpoint import read_at_most, write_atomically
from recipe.console import UserError, reason


@dataclass(frozen=True)
class Original:
    """One of the four files of LeCun, Cortes and Burges: an IDX header of 8 or 16 bytes, then the array."""

    name: str
    shape: tuple[int, ...]
    sha256: str  # of the decompressed file
    gz_size: int  # of the file as published
    gz_sha256: str
    gz_md5: str

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
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ),
    Original(
        "train-labels-idx1-ubyte",
        (60_000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "d53e105ee54ea40749a09fcbcd1e9432",
    ),
    Original(
        "t10k-images-idx3-ubyte",
        (10_000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "9fb629c4189551a2d022fa330f9573f3",
    ),
    Original(
        "t10k-labels-idx1-ubyte",
        (10_000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
)

ADVICE = (
    "give --data-dir (or MNIST_DIR) a folder with "
    + ", ".join(original.name for original in ORIGINALS)
    + ", each gzipped (.gz) or not"
)


def read_original(path: Path, original: Original) -> bytes:
    """The decompressed content of an original file, gzipped or not, whatever it is called.

    Never reads more than the original's length, so no lying header or gzip bomb can fill the memory.

    Raises:
        UserError: unreadable, truncated or altered.
    """
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = (gzip.GzipFile(fileobj=file) if gzipped else file).read(original.size + 1)
    except EOFError:
        raise UserError(f"{path} is truncated: its gzip stream has no end; fetch it again") from None
    except (OSError, zlib.error) as error:  # BadGzipFile is an OSError
        raise UserError(f"cannot read {path}: {reason(error)}; fetch it again") from None
    if len(content) < original.size:
        raise UserError(
            f"{path} is truncated: {len(content):,} bytes decompressed, {original.size:,} expected; "
            "fetch it again"
        )
    if len(content) > original.size:
        raise UserError(
            f"{path} is altered: longer than {original.size:,} bytes decompressed; fetch it again"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != original.sha256:
        raise UserError(
            f"{path} is altered: SHA-256 {digest} decompressed, {original.sha256} expected; fetch it again"
        )
    return content


def read_originals(folder: Path) -> dict[str, bytes]:
    """The decompressed content of the four originals by name, each verified by its SHA-256.

    They may be gzipped or not, and lie in the folder itself or in its ``MNIST/raw`` as torchvision has it.

    Raises:
        UserError: no such folder, or a file is missing, unreadable, truncated or altered.
    """
    try:
        if not folder.is_dir():
            raise UserError(f"there is no data folder {folder}; {ADVICE}")
        paths = {original: _find(folder, original.name) for original in ORIGINALS}
    except OSError as error:
        raise UserError(f"cannot look into the data folder {folder}: {error.strerror}; {ADVICE}") from None
    missing = [original.name for original, path in paths.items() if path is None]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)} (looked for it there and in MNIST/raw); {ADVICE}"
        )
    return {original.name: read_original(path, original) for original, path in paths.items() if path}


def _find(folder: Path, name: str) -> Path | None:
    folders, names = (folder, folder / "MNIST" / "raw"), (name, f"{name}.gz")
    candidates = (parent / file for parent in folders for file in names)
    return next((path for path in candidates if path.is_file()), None)


def check_reachable(url: str) -> None:
    """Ask for a file's headers, so that a machine without network says so in seconds.

    Both libraries would retry or wait without a limit first.

    Raises:
        OSError: no answer within 10 seconds, or a refusal.
    """
    try:
        with urlopen(Request(url, method="HEAD"), timeout=10):
            pass
    except HTTPException as error:  # the answer is not HTTP; urllib does not turn this into an OSError
        raise OSError(f"{url}: {reason(error)}") from error


MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels in 0..1; the rounded values that everybody uses

MNIST_FINGERPRINT = "59e723206924974d8a23ff880d084b6abc6932d67abc1370878f1a89543a046d"
HOLDOUT = {"mnist": 5_000, "digits": 300}  # images at the end of the training set
DIGITS_TRAIN = 1_437  # of 1,797
CACHE_FILE = "mnist.npz"
EVALUATION_BATCH = 1_000  # images at a time
GOAL = 0.994  # validation accuracy on MNIST: the task that the networks were published for
MAX_CACHE_BYTES, MAX_CACHE_ENTRIES = 64 * 2**20, 100  # it has 11 MB and 4 arrays
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in the original files' order."""

    name: str  # mnist or digits
    train_images: np.ndarray  # uint8 (N, 28, 28), background 0
    train_labels: np.ndarray  # uint8 (N,), 0 to 9
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over each array's name, dtype, shape and bytes, in the order of `ARRAYS`."""
        digest = hashlib.sha256()
        for name in ARRAYS:
            array: np.ndarray = getattr(self, name)
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class Loaded(NamedTuple):
    """A dataset, and what a person should know about where it came from."""

    dataset: Dataset
    note: str | None  # one line: why it is the digits, or what is wrong with the cache


class Split(NamedTuple):
    """Images to train on and images to validate on."""

    train_images: np.ndarray
    train_labels: np.ndarray
    val_images: np.ndarray
    val_labels: np.ndarray


Reader = Callable[[Path | None], Dataset]  # reads a folder of originals or, given None, the network


def load(choice: str, data_dir: Path | None, reader: Reader) -> Loaded:
    """The dataset of a run, in order: `data_dir`, the cache, the network, and for "auto" the digits.

    Args:
        choice: "auto", "mnist" or "digits". "auto" takes the digits only if MNIST is not
            available; the other two accept nothing else.
        data_dir: folder of the originals, by default the variable ``MNIST_DIR``. If there is one, its files
            must be faultless, under "auto" too; the cache then only saves decoding them. Unused for "digits".
        reader: ``torch_impl.data.read_mnist`` or ``jax_impl.data.read_mnist``. It may raise OSError where it
            finds no network and ImportError where its library is missing.

    Raises:
        UserError: a faulty folder, a damaged cache that cannot be rebuilt, or no MNIST for "mnist".
    """
    if choice == "digits":
        return Loaded(load_digits(), None)
    if data_dir is None and os.environ.get("MNIST_DIR"):
        data_dir = Path(os.environ["MNIST_DIR"])
    if data_dir is not None:
        data_dir = _expand(data_dir)
        read_originals(data_dir)

    cache = cache_folder() / CACHE_FILE
    damage = None
    try:
        return Loaded(_read_cache(cache), None)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for a damaged file
        damage = f"the cached {cache} is damaged ({reason(error)})"

    try:
        dataset = reader(data_dir)
    except (OSError, ImportError) as error:
        if damage:
            raise UserError(
                f"{damage} and cannot be rebuilt ({reason(error)}); delete it, or {ADVICE}"
            ) from error
        if data_dir is not None:
            raise UserError(f"cannot decode the files in {data_dir}: {reason(error)}") from error
        why = f"MNIST is not cached and cannot be downloaded ({reason(error)})"
        if choice == "mnist":
            raise UserError(f"{why}; {ADVICE}") from error
        return Loaded(load_digits(), f"{why}, hence scikit-learn's digits; for MNIST, {ADVICE}")
    if dataset.fingerprint != MNIST_FINGERPRINT:  # the files were verified, so the decoder is at fault
        raise RuntimeError(
            f"{reader.__module__} decoded MNIST to {dataset.fingerprint}, not {MNIST_FINGERPRINT}"
        )

    note = damage and f"{damage}; rebuilt"
    try:
        _write_cache(cache, dataset)
    except UserError as error:  # the run has its data; only the next one will have to decode again
        note = f"{damage} and stays so: {error}" if damage else f"MNIST is not cached: {error}"
    return Loaded(dataset, note)


def cache_folder() -> Path:
    """Where decoded arrays are kept: ``LOCKSTEP_CACHE``, or ``lockstep-mnist`` in the user's cache folder."""
    if own := os.environ.get("LOCKSTEP_CACHE"):
        return _expand(Path(own))
    return _expand(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "lockstep-mnist"


def _expand(path: Path) -> Path:
    """A path with its ``~`` replaced.

    Raises:
        UserError: nobody knows that home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"the home folder in {path} is not known; give the whole path") from None


def _read_cache(path: Path) -> Dataset:
    """The cached arrays; no more is read or allocated than they have, whatever the file says of itself."""
    if not path.exists():
        raise FileNotFoundError(path)
    content = read_at_most(path, MAX_CACHE_BYTES)
    if len(content) > MAX_CACHE_BYTES:
        raise ValueError(f"it is larger than {MAX_CACHE_BYTES >> 20} MiB")
    if content.count(b"PK\1\2") > MAX_CACHE_ENTRIES:  # zipfile would make an object of each
        raise ValueError("it lists too many arrays")
    with ZipFile(io.BytesIO(content)) as archive:
        pairs = zip(ARRAYS, ORIGINALS, strict=True)
        dataset = Dataset("mnist", **{name: _read_member(archive, name, file.shape) for name, file in pairs})
    if dataset.fingerprint != MNIST_FINGERPRINT:
        raise ValueError(f"its fingerprint is {dataset.fingerprint}, not {MNIST_FINGERPRINT}")
    return dataset


def _read_member(archive: ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of the cache, uint8."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in another way")
    with archive.open(member) as file:
        if npy.read_magic(file) != (1, 0) or npy.read_array_header_1_0(file) != (shape, False, np.uint8):
            raise ValueError(f"{name} is no uint8 array {shape}")
        size = prod(shape)
        content = file.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{name} has not {size:,} bytes")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()  # PyTorch wants a writeable copy


def _write_cache(path: Path, dataset: Dataset) -> None:
    archive = io.BytesIO()
    np.savez_compressed(archive, **{name: getattr(dataset, name) for name in ARRAYS})  # 11 MB, not 55
    write_atomically(path, archive.getvalue())


def load_digits() -> Dataset:
    """scikit-learn's 1,797 scans of 8x8 pixels with values 0 to 16, enlarged to look like MNIST.

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
    return Dataset("digits", images[train], labels[train], images[test], labels[test])


def split(dataset: Dataset, choice: str) -> Split:
    """What to train on and what to validate on.

    "test" trains on all training images and validates on the test images. "holdout", for choosing settings,
    leaves the test images alone: the last training images (see `HOLDOUT`) validate and are not trained on.
    """
    images, labels = dataset.train_images, dataset.train_labels
    if choice == "test":
        return Split(images, labels, dataset.test_images, dataset.test_labels)
    kept = len(images) - HOLDOUT[dataset.name]
    return Split(images[:kept], labels[:kept], images[kept:], labels[kept:])
