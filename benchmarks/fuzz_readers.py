"""What reads anything from outside, each with its faulty inputs and a way to try one."""

import gzip
import hashlib
import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks import fuzz_inputs as inputs
from recipe import data
from recipe.checkpoint import METRICS, Checkpoint, load_checkpoint, save_checkpoint
from recipe.data import Dataset, Original, read_original
from recipe.errors import UserError
from recipe.networks import NETWORKS
from recipe.options import TrainOptions, run_command
from recipe.recipes import get_recipe
from recipe.run import RESUME_KEYS, go_on_from, initial_tensors

SIZES = ((6, 28, 28), (6,), (3, 28, 28), (3,))  # of the arrays of a small MNIST


@dataclass(frozen=True)
class Reader:
    """One reader: how to make the ``input`` of a random number generator, and what reads it.

    ``read`` returns whether it accepted; a `UserError` says that it refused.
    """

    make: Callable[[Random], Any]
    read: Callable[[Any], None]


class Faulty(Exception):
    """A refusal that is not one line."""


def is_accepted(reader: Reader, given: Any) -> bool:
    """Whether a reader accepts an input.

    Raises:
        Faulty: its refusal is not one printable line.
        Exception: whatever else it raises is a mistake of ours.
    """
    try:
        reader.read(given)
    except UserError as refusal:
        message = str(refusal)
        if not message or not message.isprintable() or len(message) > 3_000:
            raise Faulty(repr(message[:200])) from refusal
        return False
    return True


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------------------------ the readers


def idx(folder: Path) -> Reader:
    """An original file of MNIST, plain or gzipped."""
    content = bytes([0, 0, 8, 1, 0, 0, 3, 232]) + bytes(Random(0).choices(range(10), k=1000))
    original = Original("labels", (1000,), hashlib.sha256(content).hexdigest(), 0, "", "")
    bomb = gzip.compress(bytes(inputs.BOMB_BYTES), 9)
    return Reader(
        lambda rng: inputs.faulty_idx(rng, content, bomb),
        lambda given: _nothing(read_original(_written(folder / "labels", given), original)),
    )


def cache(folder: Path) -> Reader:
    """The cache of decoded arrays, of a smaller MNIST: the table of sizes and the fingerprint are its own."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 10, size).astype(np.uint8)
        for name, size in zip(data.ARRAYS, SIZES, strict=True)
    }
    originals = tuple(Original(name, size, "", 0, "", "") for name, size in zip(arrays, SIZES, strict=True))
    fingerprint = Dataset("mnist", **arrays).fingerprint
    bomb = bytes(2**22)  # larger ones cost minutes to make; tests/test_fuzz.py has one

    def offline(_: Path | None) -> Dataset:
        raise OSError("there is no network")

    def read(given: bytes) -> None:
        _written(folder / data.CACHE_FILE, given)
        before = data.ORIGINALS, data.MNIST_FINGERPRINT, dict(os.environ)
        data.ORIGINALS, data.MNIST_FINGERPRINT = originals, fingerprint
        os.environ["LOCKSTEP_CACHE"] = str(folder)
        os.environ.pop("MNIST_DIR", None)
        try:
            data.load("mnist", None, offline)
        finally:
            data.ORIGINALS, data.MNIST_FINGERPRINT, environment = before
            os.environ.clear()
            os.environ.update(environment)

    return Reader(lambda rng: inputs.faulty_cache(rng, arrays, bomb), read)


def checkpoint(folder: Path) -> Reader:
    """A checkpoint's file."""
    path = folder / "checkpoint.safetensors"
    save_checkpoint(path, make_checkpoint())
    content = path.read_bytes()
    return Reader(
        lambda rng: inputs.faulty_checkpoint(rng, content),
        lambda given: _nothing(load_checkpoint(_written(path, given))),
    )


def resume(folder: Path) -> Reader:
    """Config, metrics and tensors of a checkpoint with a right digest, as resuming and export use them."""

    import matplotlib.pyplot  # noqa: F401 (so that importing it counts in no input)

    from benchmarks.reference import summarise
    from export.images import load_images
    from export.metadata import DESCRIBED, describe
    from recipe import report
    from recipe.curves import draw_curves

    path, state = folder / "checkpoint.safetensors", make_checkpoint()
    config = {key: state.config[key] for key in RESUME_KEYS}

    def read(given: bytes) -> None:
        found = load_checkpoint(_written(path, given))
        refusals = []
        try:
            found.check_config(*DESCRIBED)
            describe(found, "float32", "table")
            load_images(found, None)
        except UserError as refusal:
            refusals.append(refusal)
        going_on = go_on_from(path, config)
        report.epoch_line(going_on.metrics[-1], 2)
        report.summary(going_on.metrics, 1, "digits")
        summarise(going_on)
        if len(given) % 50 == 0:  # which takes half a second
            draw_curves(going_on)
        for refusal in refusals:
            raise refusal

    return Reader(lambda rng: inputs.faulty_state(rng, state), read)


def model(folder: Path) -> Reader:
    """An ONNX file, as the benchmark reads it and ONNX Runtime runs it."""
    return _onnx(folder, int8=False)


def int8(folder: Path) -> Reader:
    """A quantised ONNX file, the same."""
    return _onnx(folder, int8=True)


def _onnx(folder: Path, int8: bool) -> Reader:
    from benchmarks.inference import find_checkpoint
    from export.build import build_model
    from export.fold import fold, steps_of
    from export.images import random_images
    from export.metadata import describe, get_metadata, set_metadata
    from export.quantize import quantize
    from export.verify import read_model, run_model

    state = make_checkpoint()
    save_checkpoint(folder / "checkpoint.safetensors", state)
    exported = build_model(state.network, fold(steps_of(state.network, state.model)))
    images = random_images(8)
    if int8:
        exported = quantize(exported, (np.resize(images[:, 0], (1000, 28, 28)) * 255).astype(np.uint8))
    set_metadata(exported, describe(state, "int8" if int8 else "float32", "table"))
    content = exported.SerializeToString()

    def read(given: bytes) -> None:
        path = _written(folder / "model.onnx", given)
        found, parsed = read_model(path)
        find_checkpoint(None, path, get_metadata(parsed))
        run_model(found, images, 3)

    return Reader(lambda rng: inputs.faulty_onnx(rng, content), read)


def command_line(folder: Path) -> Reader:
    """The words after every program's name; what parses is checked as far as that needs no file."""
    from benchmarks import (
        determinism,
        dropout,
        gpu,
        inference,
        inference_study,
        kills,
        lockstep,
        reference,
        seeds,
        training,
        training_precision,
        training_profile,
        tuning,
    )
    from export import __main__ as export

    programs: list[tuple[Any, Callable[[Any], Any]]] = [
        (TrainOptions, lambda options: (options.validate(), options.resolved_recipe())),
        (export.ExportOptions, export.main),
        (inference.InferenceOptions, lambda options: options.settings()),
        (inference_study.StudyOptions, inference_study.main),
        (reference.ReferenceOptions, reference.main),
        (seeds.SeedsOptions, lambda options: options.validate()),
        (training.TrainingOptions, lambda options: options.validate()),
        (tuning.TuningOptions, lambda options: tuning.parse_network(options.network)),
        (gpu.GpuOptions, lambda options: gpu.check_minutes(options.minutes)),
        *((options, _nothing) for options in (lockstep.LockstepOptions, kills.KillOptions)),
        *((options, _nothing) for options in (dropout.DropoutOptions, determinism.DeterminismOptions)),
        *(
            (options, _nothing)
            for options in (training_precision.PrecisionOptions, training_profile.ProfileOptions)
        ),
    ]
    flags = [[f"--{field.name.replace('_', '-')}" for field in fields(options)] for options, _ in programs]

    def make(rng: Random) -> tuple[int, list[str]]:
        number = rng.randint(0, len(programs) - 1)
        return number, inputs.faulty_arguments(rng, flags[number])

    def read(given: tuple[int, list[str]]) -> None:
        number, words = given
        options, main = programs[number]
        before, place = sys.argv, Path.cwd()
        sys.argv = ["program", *words]
        os.chdir(folder)
        errors = io.StringIO()
        try:
            with redirect_stderr(errors), redirect_stdout(io.StringIO()):
                run_command(options, main, "program")
        except SystemExit as end:
            if end.code:
                raise UserError(_one_error(end.code, errors.getvalue())) from end
        finally:
            sys.argv = before
            os.chdir(place)

    return Reader(make, read)


def _one_error(code: Any, printed: str) -> str:
    if code != 2 or not printed.startswith("error: ") or printed.count("\n") != 1:
        raise Faulty(f"exit code {code!r}, {printed[:500]!r}")
    return printed.strip()


def _nothing(_: Any) -> None:
    """Take what was read, and no offence."""


def make_checkpoint() -> Checkpoint:
    """A whole checkpoint of two steps with random weights."""
    recipe, rng = get_recipe("net9954", "tuned"), np.random.default_rng(0)
    tensors = initial_tensors(NETWORKS["net9954"], recipe, 0, "float32")
    for name in tensors:
        tensors[name] += rng.uniform(0, 0.1, tensors[name].shape).astype(np.float32)
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
    entry: dict[str, Any] = dict.fromkeys(sorted(METRICS), 0.5) | {"epoch": 1, "step": 2}
    return Checkpoint(2, tensors, np.array([2.0, 1.0]), [entry], config)


READERS: dict[str, Callable[[Path], Reader]] = {
    "idx": idx,
    "cache": cache,
    "checkpoint": checkpoint,
    "resume": resume,
    "onnx": model,
    "int8": int8,
    "command line": command_line,
}
