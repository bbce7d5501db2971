"""Whatever is read from outside is accepted or refused in one line; `benchmarks.fuzz` has thousands more."""

import gzip
import io
import json
import resource
import subprocess
import sys
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from benchmarks import fuzz_inputs
from benchmarks.fuzz_readers import READERS, Reader, is_accepted, make_checkpoint
from export.verify import read_model
from recipe import data
from recipe.checkpoint import MAX_HEADER_BYTES, load_checkpoint, save_checkpoint
from recipe.errors import UserError
from tests.test_export import make_checkpoint as make_export_checkpoint
from tests.test_inference_benchmark import NETWORKS, build_model, fold, steps_of

EXAMPLES = {"command line": 150, "cache": 150, "resume": 150}


@pytest.fixture(params=READERS)
def reader(request, tmp_path) -> Reader:
    return request.param, READERS[request.param](tmp_path)


def test_readers_accept_or_refuse_in_one_line(reader):
    name, tried = reader

    @settings(
        max_examples=EXAMPLES.get(name, 300),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def try_one(rng):
        is_accepted(tried, tried.make(rng))

    try_one()


@pytest.mark.parametrize("name", READERS)
def test_readers_accept_what_is_not_faulty(name, tmp_path):
    """Or nothing would be learnt from what they refuse."""
    reader = READERS[name](tmp_path)
    accepted = (is_accepted(reader, reader.make(Random(f"{name} {number}"))) for number in range(400))
    assert any(accepted)


PROGRAM = """
import json, signal, sys, time
from random import Random
from benchmarks import fuzz
from benchmarks.fuzz_readers import READERS, Reader
from recipe.errors import UserError

def read(number):
    match number:
        case 0: raise UserError("no")
        case 1: raise KeyError("a mistake of ours")
        case 2: signal.pause()
        case 3: signal.raise_signal(signal.SIGKILL)
        case 4: bytearray(2 * fuzz.MEMORY_BYTES)
        case 5: raise UserError("")
        case 6:
            while True: pass

fuzz.Random = lambda text: int(text.split()[1])
fuzz.HANG_S, fuzz.HANG_WALL_S = 0.5, 3.0
READERS["bad"] = lambda folder: Reader(lambda number: number, read)
print(json.dumps(fuzz.measure("bad", 0, 9)))
"""


def test_a_worker_counts_tracebacks_hangs_and_crashes():
    """In a process of its own: forking this one, which has threads, is not safe."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    counts = {key: found[key] for key in ("accepted", "refused", "tracebacks", "crashes", "hangs")}
    assert counts == {"accepted": 2, "refused": 1, "tracebacks": 3, "crashes": 1, "hangs": 2}
    text = "".join(found["examples"])
    assert "a mistake of ours" in text
    assert "MemoryError" in text
    assert "Faulty" in text


# ---------------------------------------------------------------------------------- what found something once


@pytest.fixture
def content(tmp_path) -> bytes:
    save_checkpoint(tmp_path / "c", make_checkpoint())
    return (tmp_path / "c").read_bytes()


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    return str(caught.value)


def test_a_header_that_lies_about_its_length(content, tmp_path):
    for length in (MAX_HEADER_BYTES + 1, 2**40, 2**64 - 1):
        lying = length.to_bytes(8, "little") + content[8:]
        assert "says that its header has" in refusal(tmp_path / "c", lying)


def test_brackets_without_end(tmp_path):
    from safetensors.numpy import save

    about = '{"step": 0, "metrics": ' + "[" * 100_000
    words = refusal(tmp_path / "c", save({"a": np.zeros(1)}, {"lockstep": about, "sha256": ""}))
    assert "no Lockstep checkpoint" in words


def test_what_a_checkpoint_says_of_itself_is_checked(tmp_path):
    state = make_checkpoint()
    for metrics in (
        [{**state.metrics[0], "val_accuracy": float("nan")}],
        [{**state.metrics[0], "val_accuracy": 1.5}],
        [{**state.metrics[0], "epoch": 10**400}],
        [{**state.metrics[0], "step": 3}],
        [{**state.metrics[0], "epoch": True}],
        [{**state.metrics[0], "lr": "fast"}],
        [{**state.metrics[0], "seconds": float("inf")}],
        [{**state.metrics[0], "val_loss": 10**30}],
        ["nothing"],
        {},
    ):
        save_checkpoint(tmp_path / "c", type(state)(2, state.tensors, state.losses, metrics, state.config))
        assert "does not hold" in refusal(tmp_path / "c", (tmp_path / "c").read_bytes()), metrics
    for change in (
        {"seed": "x"},
        {"data": []},
        {"recipe": {"name": 1}},
        {"versions": {"numpy": 2}},
        {"split": 1},
    ):
        config = {**state.config, **change}
        save_checkpoint(tmp_path / "c", type(state)(2, state.tensors, state.losses, state.metrics, config))
        assert "does not hold" in refusal(tmp_path / "c", (tmp_path / "c").read_bytes()), change
    save_checkpoint(
        tmp_path / "c",
        type(state)(2, state.tensors, state.losses.astype(np.float32), state.metrics, state.config),
    )
    assert "does not hold" in refusal(tmp_path / "c", (tmp_path / "c").read_bytes())
    save_checkpoint(tmp_path / "c", type(state)(True, state.tensors, state.losses[:1], [], state.config))
    assert "does not hold" in refusal(tmp_path / "c", (tmp_path / "c").read_bytes())


def test_a_config_that_lacks_something_is_named(tmp_path):
    state = make_checkpoint()
    state.check_config("data.name", "recipe.ema", "seed")
    for missing in ("data.colour", "colour"):
        with pytest.raises(UserError, match=f"config lacks {missing}; use one that a training run wrote"):
            state.check_config("seed", missing)


@contextmanager
def little_memory():
    """Fails if Python's own objects take more than 200 MB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20


def cached(members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", how) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return archive.getvalue()


@pytest.mark.parametrize("lie", ["huge", "bomb", "many", "bzip2", "objects", "long"])
def test_a_cache_that_lies_about_its_size(lie, tmp_path, monkeypatch):
    arrays = {f"{name}.npy": fuzz_inputs.header((2,), "|u1") + b"\0\0" for name in data.ARRAYS}
    how = zipfile.ZIP_DEFLATED
    first = "train_images.npy"
    match lie:
        case "huge":
            arrays[first] = fuzz_inputs.header((2**40,), "|u1")
        case "bomb":
            arrays[first] = fuzz_inputs.header((60_000, 28, 28), "|u1") + bytes(2**28)
        case "many":
            arrays |= {str(number): b"" for number in range(500)}
        case "bzip2":
            how = zipfile.ZIP_BZIP2
        case "objects":
            arrays[first] = fuzz_inputs.header((60_000, 28, 28), "|O") + b"\x80\x04\x95"
        case "long":
            monkeypatch.setattr(data, "MAX_CACHE_BYTES", 100)
    (tmp_path / "mnist.npz").write_bytes(cached(arrays, how))
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path))
    monkeypatch.delenv("MNIST_DIR", raising=False)

    def offline(_):
        raise OSError("there is no network")

    with little_memory(), pytest.raises(UserError, match=r"mnist\.npz is damaged .* cannot be rebuilt"):
        data.load("mnist", None, offline)


def test_gzip_within_gzip_is_one_layer(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(gzip.compress(bytes(2**28), 1), 1))
    with little_memory(), pytest.raises(UserError, match=r"altered|truncated"):
        data.read_original(path, data.ORIGINALS[3])


# ------------------------------------------------------------------------------------------------------- ONNX


@pytest.fixture
def model():
    checkpoint = make_export_checkpoint(NETWORKS["net9954"], np.random.default_rng(0))
    return build_model(checkpoint.network, fold(steps_of(checkpoint.network, checkpoint.model)))


def nested() -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [])


def outside(tensor: onnx.TensorProto, place: str) -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


@pytest.mark.parametrize("place", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
@pytest.mark.parametrize("where", ["initializer", "attribute", "list"])
def test_weights_in_other_files_are_not_fetched(where, place, model, tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(10_000))
    tensor = onnx.numpy_helper.from_array(np.zeros(72, np.float32), "stolen")
    match where:
        case "initializer":
            outside(model.graph.initializer[0], place)
        case "attribute":
            model.graph.node[0].attribute.append(helper.make_attribute("value", outside(tensor, place)))
        case "list":
            model.graph.node[0].attribute.append(helper.make_attribute("values", [outside(tensor, place)]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="keeps weights in other files"):
        read_model(tmp_path / "model.onnx")


def change_operator(model):
    model.graph.node[0].op_type = "Loop"


def change_domain(model):
    model.graph.node[0].domain = "com.microsoft"


def add_inner_graph(model):
    model.graph.node[0].attribute.append(helper.make_attribute("body", nested()))


def add_inner_graphs(model):
    model.graph.node[0].attribute.append(helper.make_attribute("bodies", [nested()]))


def add_function(model):
    model.functions.add(name="f")


def add_training(model):
    model.training_info.add()


def add_sparse(model):
    model.graph.sparse_initializer.add()


def lie_about_dimensions(model):
    model.graph.initializer[0].dims[0] = 2**40


def lie_negatively(model):
    model.graph.initializer[0].dims[0] = -8


def pad_without_end(model):
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "pads":
            attribute.ints[:] = [2**20] * 4


def name_in_no_encoding(model):
    model.graph.node[0].name = "tobereplaced"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_operator, "operator 'Loop'"),
        (change_domain, "operator 'Conv'"),
        (add_inner_graph, "inner graphs"),
        (add_inner_graphs, "inner graphs"),
        (add_function, "functions"),
        (add_training, "functions"),
        (add_sparse, "sparse weights"),
        (lie_about_dimensions, "says that it is larger than the file"),
        (lie_negatively, "says that it is larger than the file"),
        (pad_without_end, "more than 65,536 numbers|is not valid"),
        (name_in_no_encoding, "is not valid|no ONNX model"),
    ],
)
def test_what_none_of_our_files_has_is_refused(change, words, model, tmp_path):
    change(model)
    content = model.SerializeToString().replace(b"tobereplaced", b"tobe\xff\xfelaced")
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_model(tmp_path / "model.onnx")


def test_json_that_is_deep_is_deep():
    assert fuzz_inputs.dump_json({"a": fuzz_inputs.DEEP}).count("[") == 100_000
    assert json.loads(fuzz_inputs.dump_json([1, {"b": None}])) == [1, {"b": None}]
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY, "limits are the workers'"
