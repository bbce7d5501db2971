"""What reads anything from outside: how to make its faulty inputs, and how it reads one.

The docstring of a reader says what it reads; the table in docs/reliability.md quotes it.
"""

import gzip
import hashlib
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest

from recipe import data, run
from recipe.checkpoint import METRICS, Checkpoint, initial_tensors, load_checkpoint, save_checkpoint
from recipe.console import UserError, run_command
from recipe.data import Dataset
from recipe.networks import NETWORKS
from recipe.recipes import get_recipe
from recipe.run import TrainOptions, draw_curves
from tests import fake
from tests.fuzz import inputs

BOMB_BYTES = 64 * 2**20  # zeros, which compress a thousandfold
SHAPES = ((6, 28, 28), (6,), (3, 28, 28), (3,))  # of the arrays of a small MNIST


@dataclass(frozen=True)
class Reader:
    """One reader. ``read`` raises `UserError` to refuse what ``make`` made."""

    make: Callable[[Random], Any]
    read: Callable[[Any], object]


class Faulty(Exception):
    """A refusal that is not one line."""


def is_accepted(reader: Reader, content: Any) -> bool:
    """Whether a reader accepts an input.

    Raises:
        Faulty: its refusal is not one printable line.
        Exception: whatever else it raises is our mistake.
    """
    try:
        reader.read(content)
    except UserError as refusal:
        message = str(refusal)
        if not message or not message.isprintable() or len(message) > 3_000:
            raise Faulty(repr(message[:200])) from refusal
        return False
    return True


def make_checkpoint() -> Checkpoint:
    """A whole checkpoint of two steps with random weights."""
    recipe, rng = get_recipe("net9954", "tuned"), np.random.default_rng(0)
    tensors = initial_tensors(NETWORKS["net9954"], recipe, 0, "float32")
    for tensor in tensors.values():
        tensor += rng.uniform(0, 0.1, tensor.shape).astype(np.float32)
    config = {
        "framework": "torch",
        "network": "net9954",
        "recipe": asdict(recipe),
        "seed": 0,
        "precision": "float32",
        "split": "test",
        "data": {"name": "digits", "fingerprint": "0" * 64},
        "commit": None,
        "versions": {"numpy": "2"},
    }
    metrics: dict[str, Any] = dict.fromkeys(sorted(METRICS), 0.5) | {"epoch": 1, "step": 2, "digest": "ab12"}
    return Checkpoint(2, tensors, np.array([2.0, 1.0]), [metrics], config)


def make_onnx(checkpoint: Checkpoint) -> onnx.ModelProto:
    """The file that `python -m export` makes of a checkpoint, without its metadata."""
    from export.build import build_model
    from export.fold import fold, steps_of

    return build_model(checkpoint.network, fold(steps_of(checkpoint.network, checkpoint.model)))


@contextmanager
def only_digits(folder: Path, digits: Dataset) -> Iterator[pytest.MonkeyPatch]:
    """No MNIST anywhere, and these digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_digits", lambda: digits)
        patch.setattr(data, "urlopen", _offline)  # `check_reachable` asks first
        patch.setenv("LOCKSTEP_CACHE", str(folder / "cache"))
        patch.delenv("MNIST_DIR", raising=False)
        yield patch


def _offline(*_: object) -> NoReturn:
    raise OSError("there is no network")


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------------------------ the readers


def idx(folder: Path) -> Reader:
    """MNIST's original files, plain and gzipped."""
    content = bytes([0, 0, 8, 1, 0, 0, 3, 232]) + bytes(Random(0).choices(range(10), k=1000))
    original = data.Original("labels", (1000,), hashlib.sha256(content).hexdigest(), 0, "", "")
    bomb = gzip.compress(bytes(BOMB_BYTES), 9)
    return Reader(
        lambda rng: inputs.faulty_idx(rng, content, bomb),
        lambda content: data.read_original(_written(folder / "labels", content), original),
    )


def cache(folder: Path) -> Reader:
    """The decoded arrays."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 10, shape).astype(np.uint8)
        for name, shape in zip(data.ARRAYS, SHAPES, strict=True)
    }
    originals = tuple(data.Original(name, array.shape, "", 0, "", "") for name, array in arrays.items())
    fingerprint = Dataset("mnist", **arrays).fingerprint
    bomb = bytes(2**22)  # a larger one takes minutes to make; test_fuzz.py has one

    def read(content: bytes) -> None:
        _written(folder / data.CACHE_FILE, content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "ORIGINALS", originals)
            patch.setattr(data, "MNIST_FINGERPRINT", fingerprint)
            patch.setenv("LOCKSTEP_CACHE", str(folder))
            patch.delenv("MNIST_DIR", raising=False)
            data.load("mnist", None, _offline)

    return Reader(lambda rng: inputs.faulty_cache(rng, arrays, bomb), read)


def checkpoint(folder: Path) -> Reader:
    """A checkpoint's bytes and header."""
    path = folder / "checkpoint.safetensors"
    save_checkpoint(path, make_checkpoint())
    valid = path.read_bytes()
    return Reader(
        lambda rng: inputs.faulty_checkpoint(rng, valid),
        lambda content: load_checkpoint(_written(path, content)),
    )


def resume(folder: Path) -> Reader:
    """Config, metrics and tensors of a checkpoint, the digest being right."""
    import matplotlib.pyplot  # noqa: F401 (importing it must not count in any input)

    from export.images import load_images
    from export.metadata import DESCRIBED, describe

    path, digits = folder / "checkpoint.safetensors", fake.load_blanks()
    config = {"data": {"name": "digits", "fingerprint": digits.fingerprint}}
    state = replace(make_checkpoint(), config=make_checkpoint().config | config)

    def read(content: bytes) -> None:
        checkpoint = load_checkpoint(_written(path, content))
        with only_digits(folder, digits):
            try:
                checkpoint.check_config(*DESCRIBED)
                describe(checkpoint, "float32")
                load_images(checkpoint, None)
            finally:  # a refusal by export says nothing about resuming
                run.prepare(TrainOptions(resume=path), fake.FRAMEWORK)
        run.epoch_line(checkpoint.metrics[-1], 2)
        run.summary(checkpoint.metrics, 1, "digits", 0.0)
        if len(content) % 50 == 0:  # it takes half a second
            draw_curves(checkpoint)

    return Reader(lambda rng: inputs.faulty_state(rng, state), read)


def onnx_float32(folder: Path) -> Reader:
    """A float32 ONNX file, read and run."""
    return _onnx(folder, int8=False)


def onnx_int8(folder: Path) -> Reader:
    """A quantised ONNX file, read and run."""
    return _onnx(folder, int8=True)


def _onnx(folder: Path, int8: bool) -> Reader:
    from benchmarks.inference.__main__ import find_run
    from export.images import random_images
    from export.metadata import describe, get_metadata, set_metadata
    from export.quantize import quantize
    from export.structure import read_model
    from export.verify import run_model

    state, images = make_checkpoint(), random_images(8)
    save_checkpoint(folder / "checkpoint.safetensors", state)
    model = make_onnx(state)
    if int8:
        model = quantize(model, (np.resize(images[:, 0], (1000, 28, 28)) * 255).astype(np.uint8))
    set_metadata(model, describe(state, "int8" if int8 else "float32"))
    valid = model.SerializeToString()

    def read(content: bytes) -> None:
        path = _written(folder / "model.onnx", content)
        same_content, parsed = read_model(path)
        run_model(same_content, images, 3)
        find_run(None, path, get_metadata(parsed).get("weights_sha256"))

    return Reader(lambda rng: inputs.faulty_onnx(rng, valid), read)


def command_line(folder: Path) -> Reader:
    """The words after every program's name."""
    from benchmarks import pages
    from benchmarks.accuracy import __main__ as accuracy
    from benchmarks.accuracy import tuning
    from benchmarks.inference import __main__ as inference
    from benchmarks.training import __main__ as training
    from export import __main__ as export
    from lockstep import __main__ as lockstep

    digits = fake.load_blanks()
    programs: list[tuple[type, Callable[[Any], Any]]] = [  # options, and what checks them without working
        (TrainOptions, lambda options: run.prepare(options, fake.FRAMEWORK)),
        (export.ExportOptions, export.main),
        (training.TrainingOptions, training.check),
        (inference.InferenceOptions, inference.InferenceOptions.settings),
        *((options, bool) for options in (lockstep.LockstepOptions, accuracy.AccuracyOptions)),
        *((options, bool) for options in (tuning.TuningOptions, pages.PagesOptions)),
    ]
    flags = [[f"--{field.name.replace('_', '-')}" for field in fields(options)] for options, _ in programs]

    def make(rng: Random) -> tuple[int, list[str]]:
        number = rng.randrange(len(programs))
        return number, inputs.faulty_arguments(rng, flags[number])

    def read(arguments: tuple[int, list[str]]) -> None:
        number, words = arguments
        options, main = programs[number]
        errors = io.StringIO()
        try:
            with (
                only_digits(folder, digits) as patch,
                redirect_stderr(errors),
                redirect_stdout(io.StringIO()),
            ):
                patch.setattr(sys, "argv", ["program", *words])
                patch.chdir(folder)
                run_command(options, main, "program")
        except SystemExit as end:
            printed = errors.getvalue()
            if end.code and (end.code != 2 or not printed.startswith("error: ") or printed.count("\n") != 1):
                raise Faulty(f"exit code {end.code!r}, {printed[:500]!r}") from end
            if end.code:
                raise UserError(printed.strip()) from end

    return Reader(make, read)


READERS: dict[str, Callable[[Path], Reader]] = {
    "idx": idx,
    "cache": cache,
    "checkpoint": checkpoint,
    "resume": resume,
    "onnx": onnx_float32,
    "int8": onnx_int8,
    "command line": command_line,
}
