"""Damaged files and mistyped command lines: each reader accepts or refuses in one line, and nothing else.

Hypothesis damages valid inputs. `-m slow` tries 10,000 of each.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import sys
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from export.build import build_model
from export.fold import fold, steps_of
from export.structure import read_model
from export.verify import run_model
from recipe import checkpoint, data
from recipe.checkpoint import Checkpoint, Epoch, initial_tensors, load_checkpoint
from recipe.console import UserError, run_command
from recipe.networks import get_network
from recipe.recipes import get_recipe
from recipe.run import TrainOptions, prepare
from tests import fake
from tests.helpers import make_config

NUMBERS = (0, 1, 2, 7, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
VALUES = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.floats() | st.text() | st.just(10**400)
JSON = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Some faults anywhere, most often near the ends, where headers and tables are."""
    for _ in range(draw(st.integers(1, 3))):
        length = len(content)
        near = min(length, 256)
        at = draw(st.integers(0, near) | st.integers(length - near, length) | st.integers(0, length))
        match draw(st.integers(0, 3)):
            case 0:
                content = content[:at]
            case 1 if at < length:
                flipped = content[at] ^ (1 << draw(st.integers(0, 7)))
                content = content[:at] + bytes([flipped]) + content[at + 1 :]
            case 2:
                size = draw(st.sampled_from((1, 2, 4, 8)))
                number = draw(st.sampled_from(NUMBERS)) % 256**size
                content = content[:at] + number.to_bytes(size, "little") + content[at + size :]
            case _:
                content = content[:at] + draw(st.binary(max_size=16)) + content[at:]
    return content


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """A JSON value in which something, somewhere, is another value or missing."""
    if isinstance(tree, dict | list) and tree and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(tree) if isinstance(tree, dict) else range(len(tree))))
        copy = tree.copy()
        if isinstance(copy, dict) and not draw(st.integers(0, 5)):
            del copy[key]
        else:
            copy[key] = draw(changed(tree[key]))
        return copy
    return draw(JSON)


LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 100]) + bytes(range(100))
ORIGINAL = data.Original("labels", (100,), hashlib.sha256(LABELS).hexdigest())
NETWORK, RECIPE = get_network("net9954"), get_recipe("net9954", "tuned")
STATE = Checkpoint(
    2,
    initial_tensors(NETWORK, RECIPE, 0, "float32"),
    np.array([2.0, 1.0]),
    [Epoch(1, 2, 0.1, 2.0, 0.5, 2.0, 0.5, 1.0, "ab12")],
    make_config(),
)
ABOUT = {"step": 2, "metrics": [dataclasses.asdict(STATE.metrics[0])]}
ABOUT |= {"config": dataclasses.asdict(STATE.config)}


def pack(about: object) -> bytes:
    """A checkpoint whose digest is right, whatever its JSON says."""
    tensors, text = STATE.tensors | {"losses": STATE.losses}, json.dumps(about)
    return save(tensors, {"lockstep": text, "sha256": checkpoint._digest(tensors, text)})


def make_onnx() -> bytes:
    model = build_model(NETWORK, fold(steps_of(NETWORK, STATE.model)))
    return model.SerializeToString()


def read_cache(path: Path) -> None:
    data._read_cache(path)


def read_idx(path: Path) -> None:
    with path.open("rb") as file:
        data._read_original(file, ORIGINAL)


def resume(path: Path) -> None:
    prepare(TrainOptions(resume=path), fake.Trainer)


def run_onnx(path: Path) -> None:
    content, _ = read_model(path)
    run_model(content, np.zeros((1, 1, 28, 28), np.float32), 1)


def make_cache() -> bytes:
    archive = io.BytesIO()
    arrays = (np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.uint8)) * 2
    np.savez_compressed(archive, **dict(zip(data.ARRAYS, arrays, strict=True)))
    return archive.getvalue()


# Reader: its inputs, and what it may raise beside UserError: `data.load` makes one line of that.
READERS = {
    "idx": (
        read_idx,
        damaged(LABELS) | damaged(gzip.compress(LABELS, mtime=0)),
        (OSError, EOFError, ValueError, zlib.error),
    ),
    "cache": (read_cache, damaged(make_cache()), Exception),
    "checkpoint": (load_checkpoint, damaged(pack(ABOUT)), ()),
    "resume": (resume, changed(ABOUT).map(pack), ()),
    "onnx": (run_onnx, damaged(make_onnx()), ()),
}
COUNTS = [
    pytest.param(20, id="20"),
    pytest.param(10_000, id="10000", marks=[pytest.mark.slow, pytest.mark.hours]),
]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(reader, count, tmp_path, monkeypatch):
    fake.skip_slow_parts(monkeypatch.setattr)
    read, inputs, others = READERS[reader]

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(inputs)
    def check(content: bytes) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        try:
            read(path)
        except UserError as refusal:
            assert str(refusal).isprintable()
        except others:
            pass

    check()


WORDS = ["--network", "--epochs", "--seed", "--dataset", "--out", "--help", "--resume", "net9954", "digits"]


@pytest.mark.parametrize("count", COUNTS)
def test_any_words_are_options_or_one_line(count, monkeypatch):
    @settings(max_examples=count, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(WORDS) | st.text(max_size=9) | st.integers().map(str), max_size=6))
    def check(words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["train", *words])
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
            try:
                run_command(TrainOptions, lambda _: None, "train")
            except SystemExit as end:
                assert end.code in (0, 2)
        assert errors.getvalue().count("\n") <= 1

    check()
