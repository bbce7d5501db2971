"""Whatever is read from outside is accepted or refused in one line: no traceback, no hang, no lost memory."""

import gzip
import json
import subprocess
import sys
import tracemalloc
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save

from export.structure import read_model
from recipe import data
from recipe.checkpoint import MAX_HEADER_BYTES, load_checkpoint, save_checkpoint
from recipe.console import UserError
from tests.fuzz import inputs
from tests.fuzz.readers import READERS, make_checkpoint, make_onnx
from tests.fuzz.worker import try_inputs

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", READERS)
def test_a_reader_accepts_or_refuses_in_one_line(name):
    counts = try_inputs(name, 0, 200)
    assert counts["accepted"] > 0 < counts["refused"], "or nothing would be learnt"


@pytest.mark.slow
@pytest.mark.hours
@pytest.mark.parametrize("name", READERS)
def test_a_reader_accepts_or_refuses_ten_thousand_inputs(name, request, publish):
    """In a process whose memory is limited."""
    number = str(request.config.getoption("count") or 10_000)
    command = [sys.executable, "-m", "tests.fuzz.worker", name, "0", number]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=3600, check=True)
    content = READERS[name].__doc__.rstrip(".")
    publish({"test": "fuzz", "reader": name, "content": content} | json.loads(done.stdout))


PROGRAM = """
import sys
from tests.fuzz import worker
from tests.fuzz.readers import READERS, Reader
from recipe.console import UserError

def read(number):
    match sys.argv[1]:
        case "refusal": raise UserError("no")
        case "traceback": raise KeyError("our mistake")
        case "hang":
            while True: pass
        case "memory": bytearray(2 * worker.MEMORY_BYTES)
        case "silence": raise UserError("")

worker.HANG_S = 0.5
worker.Random = lambda text: int(text.split()[1])
READERS["bad"] = lambda folder: Reader(lambda number: number, lambda number: number >= 20 and read(number))
worker.main("bad", 0, 21)
"""


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refusal", ""),
        ("traceback", "our mistake"),
        ("hang", "Hang"),
        ("memory", "MemoryError"),
        ("silence", "Faulty"),
    ],
)
def test_the_worker_fails_when_it_should(fault, words):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, fault], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert words in done.stderr
    assert (done.returncode == 0) == (fault == "refusal")
    if words:
        assert "input 20 of bad" in done.stderr
    else:
        counts = json.loads(done.stdout)
        assert (counts["accepted"], counts["refused"]) == (20, 1)


# --------------------------------------------------------------------------- checkpoints that found a mistake


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    return str(caught.value)


def test_a_header_with_a_wrong_length_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c", make_checkpoint())
    content = (tmp_path / "c").read_bytes()
    for length in (MAX_HEADER_BYTES + 1, 2**40, 2**64 - 1):
        wrong = length.to_bytes(8, "little") + content[8:]
        assert "says that its header has" in refusal(tmp_path / "c", wrong)


def test_endless_brackets_are_refused(tmp_path):
    about = '{"step": 0, "metrics": ' + "[" * 100_000
    words = refusal(tmp_path / "c", save({"a": np.zeros(1)}, {"lockstep": about, "sha256": ""}))
    assert "no Lockstep checkpoint" in words


METRIC_FAULTS = (
    {"val_accuracy": float("nan")},
    {"val_accuracy": 1.5},
    {"epoch": 10**400},
    {"step": 3},
    {"epoch": True},
    {"lr": "fast"},
    {"seconds": float("inf")},
    {"val_loss": 10**30},
)
CONFIG_FAULTS = (
    {"seed": "x"},
    {"data": []},
    {"recipe": {"name": 1}},
    {"versions": {"numpy": 2}},
    {"split": 1},
)


def test_the_content_of_a_checkpoint_is_checked(tmp_path):
    state = make_checkpoint()
    wrong = [
        *(replace(state, metrics=[state.metrics[0] | fault]) for fault in METRIC_FAULTS),
        *(replace(state, config=state.config | fault) for fault in CONFIG_FAULTS),
        replace(state, metrics=["nothing"]),
        replace(state, metrics={}),
        replace(state, losses=state.losses.astype(np.float32)),
        replace(state, step=True, losses=state.losses[:1], metrics=[]),
    ]
    for each in wrong:
        save_checkpoint(tmp_path / "c", each)
        assert "does not hold" in refusal(tmp_path / "c", (tmp_path / "c").read_bytes()), each


def test_what_a_config_lacks_is_named():
    state = make_checkpoint()
    state.check_config("data.name", "recipe.ema_decay", "seed")
    for missing in ("data.colour", "colour"):
        with pytest.raises(UserError, match=f"config lacks {missing}; use one that a training run wrote"):
            state.check_config("seed", missing)


# -------------------------------------------------------------------------------- caches that found a mistake


@contextmanager
def little_memory():
    """Fails if Python's own objects take more than 200 MB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20


@pytest.mark.parametrize("fault", ["huge", "bomb", "many", "bzip2", "objects", "long"])
def test_a_cache_that_is_not_what_it_says_is_refused(fault, tmp_path, monkeypatch):
    arrays = {f"{name}.npy": inputs.npy_header((2,), "|u1") + b"\0\0" for name in data.ARRAYS}
    compression = zipfile.ZIP_DEFLATED
    first = "train_images.npy"
    match fault:
        case "huge":
            arrays[first] = inputs.npy_header((2**40,), "|u1")
        case "bomb":
            arrays[first] = inputs.npy_header((60_000, 28, 28), "|u1") + bytes(2**28)
        case "many":
            arrays |= {str(number): b"" for number in range(500)}
        case "bzip2":
            compression = zipfile.ZIP_BZIP2
        case "objects":
            arrays[first] = inputs.npy_header((60_000, 28, 28), "|O") + b"\x80\x04\x95"
        case "long":
            monkeypatch.setattr(data, "MAX_CACHE_BYTES", 100)
    (tmp_path / data.CACHE_FILE).write_bytes(inputs.make_zip(arrays, compression))
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path))
    monkeypatch.delenv("MNIST_DIR", raising=False)

    def offline(_):
        raise OSError("there is no network")

    with little_memory(), pytest.raises(UserError, match=r"mnist\.npz is damaged .* cannot be rebuilt"):
        data.load("mnist", None, offline)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_gzip_bomb_is_not_unpacked(layers, tmp_path):
    path = tmp_path / "labels.gz"
    bomb = gzip.compress(bytes(2**28), 1)
    path.write_bytes(bomb if layers == 1 else gzip.compress(bomb, 1))
    with little_memory(), pytest.raises(UserError, match=r"altered|truncated"):
        data.read_original(path, data.ORIGINALS[3])


# ---------------------------------------------------------------------------- ONNX files that found a mistake


@pytest.fixture
def model() -> onnx.ModelProto:
    return make_onnx(make_checkpoint())


def check_refusal(model: onnx.ModelProto, folder: Path, words: str) -> None:
    content = model.SerializeToString().replace(b"tobereplaced", b"tobe\xff\xfelaced")
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_model(folder / "model.onnx")


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
@pytest.mark.parametrize("where", ["initializer", "attribute", "list"])
def test_weights_in_other_files_are_not_read(where, path, model, tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(10_000))
    initializer = where == "initializer"
    tensor = (
        model.graph.initializer[0] if initializer else onnx.numpy_helper.from_array(np.zeros(72, np.float32))
    )
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=path)
    if not initializer:
        value = tensor if where == "attribute" else [tensor]
        model.graph.node[0].attribute.append(helper.make_attribute("value", value))
    check_refusal(model, tmp_path, "keeps weights in other files|functions or inner graphs")


def add_attribute(model: onnx.ModelProto, name: str, value: object) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute(name, value))


def set_first_dimension(model: onnx.ModelProto, size: int) -> None:
    model.graph.initializer[0].dims[0] = size


def pad_without_end(model: onnx.ModelProto) -> None:
    for attribute in (attribute for node in model.graph.node for attribute in node.attribute):
        if attribute.name == "pads":
            attribute.ints[:] = [2**20] * 4


INNER = helper.make_graph([], "inner", [], [])
FAULTS = {
    "loop": (lambda model: setattr(model.graph.node[0], "op_type", "Loop"), "operator 'Loop'"),
    "domain": (lambda model: setattr(model.graph.node[0], "domain", "com.microsoft"), "operator '"),
    "graph": (lambda model: add_attribute(model, "body", INNER), "inner graphs"),
    "graphs": (lambda model: add_attribute(model, "bodies", [INNER]), "inner graphs"),
    "function": (lambda model: model.functions.add(name="f"), "functions"),
    "training": (lambda model: model.training_info.add(), "functions"),
    "sparse": (lambda model: model.graph.sparse_initializer.add(), "functions or inner graphs"),
    "large": (lambda model: set_first_dimension(model, 2**40), "says that it is larger than the file"),
    "negative": (lambda model: set_first_dimension(model, -8), "says that it is larger than the file"),
    "pads": (pad_without_end, "more than 65,536 numbers|is not valid"),
    "encoding": (
        lambda model: setattr(model.graph.node[0], "name", "tobereplaced"),
        "is not valid|no ONNX model",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_none_of_our_files_has_is_refused(fault, model, tmp_path):
    change, words = FAULTS[fault]
    change(model)
    check_refusal(model, tmp_path, words)


def test_deep_json_is_deep():
    assert inputs.dump_json({"a": inputs.DEEP}).count("[") == 100_000
    assert json.loads(inputs.dump_json([1, {"b": None}])) == [1, {"b": None}]
