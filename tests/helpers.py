"""What several test files use."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest

import jax_impl.train
import torch_impl.train
from recipe.checkpoint import FILE_NAME
from recipe.cli import run_command
from recipe.options import TrainOptions
from recipe.run import Framework, train

ROOT = Path(__file__).parent.parent
MNIST_DIR = os.environ.get("MNIST_DIR")  # with the four original files; a test may delete the variable
FRAMEWORKS = {"torch": torch_impl.train.FRAMEWORK, "jax": jax_impl.train.FRAMEWORK}
PER_EPOCH = 10  # 1,437 digits in batches of 143
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
