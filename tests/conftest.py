"""What the tests share: data, and the two trainers side by side."""

import os

# torch.compile takes half a minute a network on 2 cores; the tests that are about it run in processes of
# their own. Before torch is imported.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

from pathlib import Path

import numpy as np
import pytest

from recipe import data
from recipe.data import Split
from recipe.networks import NETWORKS
from torch_impl.data import read_mnist


@pytest.fixture(scope="session")
def digits() -> Split:
    return data.split(data.load_digits(), "test")


@pytest.fixture(scope="session")
def mnist() -> Split:
    folder = os.environ.get("MNIST_DIR")
    if not folder:
        pytest.skip("no MNIST: set MNIST_DIR to a folder with the four original files")
    return data.split(data.load("mnist", Path(folder), read_mnist).dataset, "test")


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest):
    return NETWORKS[request.param]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
