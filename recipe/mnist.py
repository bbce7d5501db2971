"""The four original files of MNIST: where they lie, and proof that they are the originals."""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from math import prod
from pathlib import Path
from urllib.request import Request, urlopen

from recipe.errors import UserError, reason


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
