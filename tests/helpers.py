"""What several test files use."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest

import jax_impl.train
import torch_impl.train
from lockstep.runs import turn_everything_on
from recipe.checkpoint import FILE_NAME
from recipe.console import run_command
from recipe.networks import Average, AvgPool, Conv, Dropout, MaxPool, Norm, Relu, build_network
from recipe.recipes import get_recipe
from recipe.run import Framework, TrainOptions, train

ROOT = Path(__file__).parent.parent
MNIST_DIR = os.environ.get("MNIST_DIR")  # with the four original files; a test may delete the variable
FRAMEWORKS = {"torch": torch_impl.train.FRAMEWORK, "jax": jax_impl.train.FRAMEWORK}
PER_EPOCH = 10  # 1,437 digits in batches of 143
# Every kind of layer once, a padded and a shrinking convolution, a bias, shared weights: for XLA it is faster
# to compile than net10040. The recipe has weight decay, an average and, like everything here, chance.
TINY = build_network(
    "tiny",
    [
        *[Conv(4, pad=1, bias=False), Norm(), Relu(), MaxPool(), Dropout(), AvgPool()],
        *[Conv(4), Relu(), Conv(4, shared=2), Conv(10, kernel=1), Average()],
    ],
)
TINY_RECIPE = turn_everything_on(get_recipe("net10040", "tuned"))
# The short bitwise run in docs/lockstep.md and its digest. Whoever gets another digest has another run.
BITWISE = {"network": "net9954", "recipe": "tuned", "epochs": 2, "batch": None, "precision": "bitwise"}
DIGEST = "0338215fc05ee6f298549d18c4bd05f909e8914606f97c2add63886b9af2ce9e"
OPTIONS = TrainOptions(network="net9954", dataset="digits", epochs=2, batch=143, device="cpu")


def train_digits(framework: Framework, out: Path, **changes) -> Path:
    """A real run of two epochs, or as changed; returns the path of its checkpoint."""
    train(dataclasses.replace(OPTIONS, out=out, **changes), framework)
    return out / FILE_NAME


def call(framework: Framework, *arguments: object) -> int:
    """Train by a command line, in this process; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *map(str, arguments)])
        try:
            run_command(TrainOptions, lambda options: train(options, framework), "python -m train")
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code
    return 0
