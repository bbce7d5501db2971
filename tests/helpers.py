"""What several test files use."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import jax_impl.devices
import jax_impl.train
import torch_impl.devices
import torch_impl.train
from lockstep.runs import turn_everything_on
from recipe.checkpoint import FILE_NAME, Config, Images
from recipe.console import run_command
from recipe.networks import Average, AvgPool, Conv, Dropout, MaxPool, Norm, Relu, build_network
from recipe.recipes import get_recipe
from recipe.run import TrainOptions, train

ROOT = Path(__file__).parent.parent
MNIST_DIR = os.environ.get("MNIST_DIR")  # with the four original files; a test may delete the variable
TRAINERS = {"torch": torch_impl.train.Trainer, "jax": jax_impl.train.Trainer}
DEVICES = {"torch": torch_impl.devices, "jax": jax_impl.devices}
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
LINE = "4 pool dropout avgpool 4@a 4@a average 10x1 bias"  # as small, for the command line
TINY_RECIPE = turn_everything_on(get_recipe("net10040", "tuned"))
# The short bitwise run in docs/lockstep.md and its digest. Whoever gets another digest has another run.
BITWISE = {"network": "net9954", "recipe": "tuned", "epochs": 2, "batch": None, "precision": "bitwise"}
DIGEST = "0338215fc05ee6f298549d18c4bd05f909e8914606f97c2add63886b9af2ce9e"
OPTIONS: dict[str, Any] = {
    "network": "net9954",
    "dataset": "digits",
    "epochs": 2,
    "batch": 143,
    "device": "cpu",
    "precision": "float32",
}


def make_trainer(framework: str, *arguments: Any) -> Any:
    """A trainer of (network, recipe, dataset, precision) on one CPU device."""
    *others, precision = arguments
    return TRAINERS[framework](*others, DEVICES[framework].select_devices("cpu"), precision)


def train_digits(framework: str, out: Path | None, **changes: Any) -> Path:
    """A real run of two epochs, or as changed; returns the path of its checkpoint."""
    go_on(framework, **OPTIONS | {"out": out} | changes)
    return (out or Path()) / FILE_NAME


def go_on(framework: str, **options: Any) -> None:
    """Train with these options and no others."""
    devices = DEVICES[framework].select_devices(options.get("device", "cpu"))
    train(TrainOptions(**{"device": "cpu"} | options), TRAINERS[framework], devices)


def make_config(**changes: Any) -> Config:
    """The config of a run of net9954."""
    recipe = get_recipe("net9954", "tuned")
    return Config(
        **{
            **{"framework": "torch", "network": "net9954", "recipe": recipe, "seed": 0},
            **{"precision": "float32", "split": "test", "data": Images("digits", "0" * 64)},
            **{"data_note": None, "devices": 1, "max_steps": None, "resumed_from": None, "started": ""},
            **{"machine": {}, "command": "", "commit": None, "date": "", "versions": {"numpy": "2"}},
            **{"device": "cpu", "threads": 1},
            **changes,
        }
    )


def call(main: Any, *arguments: object) -> int:
    """Call a training program's `main` by a command line, in this process; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *map(str, arguments)])
        try:
            run_command(TrainOptions, main, "python -m train")
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code
    return 0
