"""What the tests share: data, and a short real run of each framework."""

import gzip
import io
import os

# torch.compile takes half a minute a network on 2 cores; the tests that are about it run in processes of
# their own. Before torch is imported.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# Otherwise each trainer of PyTorch looks for free cores, and not every one would take the same number.
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from recipe import data, record
from recipe.data import Split, read_originals
from recipe.networks import NETWORKS
from recipe.run import Framework
from tests.helpers import FRAMEWORKS, MNIST_DIR, train_digits
from torch_impl.data import read_mnist


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--count", type=int, help="kills or faulty inputs of each slow test (default: 100 or 10,000)"
    )
    parser.addoption(
        "--publish", action="store_true", help="add the counts of slow reliability tests to results/"
    )


@pytest.fixture
def publish(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds rows to results/reliability.jsonl, with --publish only."""
    packages = ("numpy", "torch", "jax", "flax", "onnx", "onnxruntime")

    def add(*rows: dict[str, Any]) -> None:
        if request.config.getoption("publish"):
            record.add_rows("reliability", rows, packages, publish=True)

    return add


@pytest.fixture(scope="session")
def digits() -> Split:
    return data.split(data.load_digits(), "test")


@pytest.fixture(scope="session")
def mnist() -> Split:
    if not MNIST_DIR:
        pytest.skip("no MNIST: set MNIST_DIR to a folder with the four original files")
    return data.split(data.load("mnist", Path(MNIST_DIR), read_mnist).dataset, "test")


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


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Framework:
    return FRAMEWORKS[request.param]


class RealRun(NamedTuple):
    """A finished run of `tests.helpers.OPTIONS`."""

    checkpoint: Path
    printed: str


@pytest.fixture(scope="session")
def real_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RealRun]:
    """One by each framework; tests only read them."""

    def run(framework: Framework) -> RealRun:
        out = tmp_path_factory.mktemp(framework.name) / "run"
        with redirect_stdout(io.StringIO()) as printed:
            return RealRun(train_digits(framework, out), printed.getvalue())

    return {name: run(framework) for name, framework in FRAMEWORKS.items()}
