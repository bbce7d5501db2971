"""What the tests share: data, and a short real run of each framework."""

import gzip
import io
import os

# torch.compile takes half a minute a network on 2 cores; the tests that are about it run in processes of
# their own. Before torch is imported.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# The same bits in every test, whatever else runs.
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from recipe import data
from recipe.data import Dataset, read_originals
from recipe.networks import NETWORKS
from tests.helpers import MNIST_DIR, TRAINERS, train_digits
from torch_impl.data import read_mnist


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return data.load("digits", None, read_mnist)


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    if not MNIST_DIR:
        pytest.skip("no MNIST: set MNIST_DIR to a folder with the four original files")
    return data.load("mnist", Path(MNIST_DIR), read_mnist)


@pytest.fixture(scope="session")
def originals() -> dict[str, bytes]:
    """The four original files of MNIST, decompressed, by name."""
    if not MNIST_DIR:
        pytest.skip("no MNIST: set MNIST_DIR to a folder with the four original files")
    return read_originals(Path(MNIST_DIR))


@pytest.fixture(scope="session")
def gzipped(originals) -> dict[str, bytes]:
    return {name: gzip.compress(content, 1) for name, content in originals.items()}


@pytest.fixture
def folder(tmp_path: Path, originals, gzipped) -> Path:
    """A faultless data folder, to be damaged: labels gzipped, images not, which is quicker."""
    folder = tmp_path / "originals"
    folder.mkdir()
    for name in originals:
        if "images" in name:
            (folder / name).write_bytes(originals[name])
        else:
            (folder / f"{name}.gz").write_bytes(gzipped[name])
    return folder


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest):
    return NETWORKS[request.param]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=TRAINERS)
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


class RealRun(NamedTuple):
    """A finished run of `tests.helpers.OPTIONS`."""

    checkpoint: Path
    printed: str


@pytest.fixture(scope="session")
def real_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RealRun]:
    """One by each framework; tests only read them."""

    def run(framework: str) -> RealRun:
        out = tmp_path_factory.mktemp(framework) / "run"
        with redirect_stdout(io.StringIO()) as printed:
            return RealRun(train_digits(framework, out), printed.getvalue())

    return {name: run(name) for name in TRAINERS}
