"""The inference benchmark: its statistics, its engines, and the program on tiny settings."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from benchmarks.inference.__main__ import InferenceOptions, find_run, list_contenders, main
from benchmarks.inference.engines import ENGINES, Contender, Engine, export_with_torch
from benchmarks.inference.measure import Measurement, Settings, make_rows, measure

from benchmarks.inference import __main__ as inference
from benchmarks.inference import measure as measuring
from export.build import build_model
from export.fold import fold, steps_of
from export.images import Images, random_images
from export.metadata import get_metadata, set_metadata, weights_sha256
from recipe.checkpoint import Checkpoint, initial_tensors, load_checkpoint, save_checkpoint
from recipe.console import UserError
from recipe.networks import NETWORKS
from recipe.recipes import get_recipe
from recipe.record import read_rows

NETWORK = NETWORKS["net9954"]
TINY = Settings(batches=(1, 3), threads=(1,), rounds=2, seconds=0.01)


def write_run(folder: Path, seed: int) -> Path:
    """A run that has taken no step."""
    tensors = initial_tensors(NETWORK, get_recipe("net9954", "reference"), seed, "float32")
    config = {
        "network": "net9954",
        "framework": "torch",
        "recipe": {"ema_decay": None},
        "data": {"name": "mnist"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "checkpoint.safetensors", Checkpoint(0, tensors, np.empty(0), [], config))
    return folder / "checkpoint.safetensors"


@pytest.fixture(autouse=True)
def _threads():
    """An engine sets PyTorch's number of threads; other tests in this process have theirs."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its file, which is not verified."""
    path = tmp_path_factory.mktemp("run")
    tensors = load_checkpoint(write_run(path, seed=0)).model
    model = build_model(NETWORK, fold(steps_of(NETWORK, tensors)))
    set_metadata(model, {"weights_sha256": weights_sha256(tensors), "precision": "float32"})
    onnx.save(model, path / "model.onnx")
    return path


@pytest.fixture
def contender(folder) -> Contender:
    return Contender("onnxruntime", "onnxruntime", folder / "model.onnx", folder / "checkpoint.safetensors")


@pytest.fixture
def images() -> Images:
    return Images("random", random_images(32), np.zeros(32, np.uint8), None)


def run_file(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    return np.asarray(session.run(["logits"], {"image": images})[0])


# ----------------------------------------------------------------------------------------------- statistics


def measured(contender: Contender, *rounds: int, wrong: int = 0) -> Measurement:
    """Calls that take so many nanoseconds in each round, and so many images in another class."""
    logits = np.zeros((32, 10), np.float32)
    logits[:, 0], logits[:wrong, 1] = 1, 2
    latencies = {(1, 4): [np.full(5, nanoseconds, np.int64) for nanoseconds in rounds]}
    starts = [[1.0, 2.0, 3.0]] * len(rounds)
    return Measurement(contender, latencies, {(1, 4): not wrong}, starts, 100.0, logits)


def test_rows_of_known_latencies(contender, images):
    nanoseconds = 1000 * np.arange(1, 101, dtype=np.int64)
    measurement = replace(measured(contender, 1), latencies={(1, 4): [nanoseconds[::2], nanoseconds[1::2]]})
    (row,) = make_rows([measurement], {1: 1e9}, NETWORK, images)
    percentiles = {key: row[key] for key in ("calls", "p50_us", "p90_us", "p99_us")}
    assert percentiles == {"calls": 100, "p50_us": 50.5, "p90_us": 90.1, "p99_us": 99.01}
    assert row["images_per_second"] == pytest.approx(4 / 50.5e-6, rel=1e-4)
    assert row["limit_us"] == pytest.approx(4 * 2 * 1_068_320 / 1e3, rel=1e-4)


def test_ratios_are_taken_round_by_round(contender, images):
    """A machine that becomes ten times slower after the first round changes no ratio."""
    first, other = measured(contender, 100, 1000, 1000), measured(contender, 50, 500, 1400, wrong=1)
    ours, theirs = make_rows([first, other], {1: 1e11}, NETWORK, images)
    assert (ours["ratio"], theirs["ratio"]) == (1, 0.5)
    assert (ours["settled"], theirs["settled"]) == (True, False)
    assert (theirs["same_class"], theirs["images"], theirs["largest_difference"]) == (31, 32, 2)
    assert theirs["accuracy"] == pytest.approx(31 / 32, rel=1e-4)


# -------------------------------------------------------------------------------------------------- engines


def check_engine(contender: Contender, images: Images) -> None:
    engine = Engine(contender, 1, images.test, 1)
    expected = run_file(contender.model, images.test)
    np.testing.assert_allclose(engine.logits(batch=5), expected, rtol=0, atol=1e-5)
    latencies, _ = engine.time_batch(3, 0.0)
    assert len(latencies) >= 10 and len(engine.start()) == 3


@pytest.mark.parametrize("engine", ["onnxruntime", "torch-eager", "jax-jit"])
def test_engines_compute_the_same_logits(engine, contender, images):
    check_engine(replace(contender, engine=engine, spinning=False), images)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch-compile", "openvino-f32"])
def test_slow_engines_compute_the_same_logits(engine, contender, images):
    pytest.importorskip(ENGINES[engine][0][0])
    check_engine(replace(contender, engine=engine), images)


@pytest.mark.slow
def test_the_file_of_pytorch_s_exporter(contender, images, tmp_path):
    path = tmp_path / "torch.onnx"
    export_with_torch(contender.checkpoint, path)
    for count in (1, 32):
        ours, theirs = (run_file(each, images.test[:count]) for each in (contender.model, path))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------- the processes


def test_rounds_alternate_and_failures_are_left_out(contender, images, monkeypatch):
    order = []

    class Fake:
        def __init__(self, label, make, *arguments, cores, **_):
            order.append((cores, label))
            if label == "jax":
                raise UserError("no compiler")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def call(self, method, *_):
            timed = np.ones(3, np.int64), len(order) > 4
            return {"measure": 1e11, "start": [1.0, 2.0, 3.0], "time_batch": timed, "logits": None}[method]

        def memory(self):
            return len(order)

    monkeypatch.setattr(measuring, "Worker", Fake)
    settings = replace(TINY, batches=(1,), threads=(1, 2), rounds=3)
    contenders = [contender, replace(contender, label="jax")]
    (ours, jax), flops = measure(contenders, images.test, settings)
    one_round = [(1, "matrix product"), (1, "onnxruntime"), (2, "matrix product"), (2, "onnxruntime")]
    back = [(2, "matrix product"), (2, "onnxruntime"), (1, "matrix product"), (1, "onnxruntime")]
    assert [each for each in order if each[1] != "jax"] == one_round + back + one_round
    assert [each for each in order if each[1] == "jax"] == [(1, "jax")]
    assert jax.failure == "no compiler"
    assert len(ours.latencies[2, 1]) == 3
    assert ours.settled == {(1, 1): False, (2, 1): True}
    assert flops == {1: 1e11, 2: 1e11}
    with pytest.raises(UserError, match="no compiler"):
        measure(contenders[::-1], images.test, settings)


def test_whole_run(folder, images, tmp_path, monkeypatch, capsys):
    """With real processes; rows go beside the runs, and the tables fit 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(inference, "load_images", lambda *_: images)
    monkeypatch.setattr(InferenceOptions, "settings", lambda self: TINY)
    main(InferenceOptions(model=folder / "model.onnx", engines=("onnxruntime", "torch-eager")))
    rows = read_rows("inference", tmp_path / "runs" / "bench")
    assert [(row["engine"], row["batch"]) for row in rows] == [
        (engine, batch) for engine in ("onnxruntime", "torch-eager") for batch in (1, 3)
    ]
    for row in rows:
        assert row["same_class"] == row["images"] == 32
        assert row["largest_difference"] < 1e-5
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"]
        assert row["calls"] >= 20 and row["import_ms"] > 0 and row["peak_mib"] > 10
        assert row["versions"]["onnxruntime"] and isinstance(row["settled"], bool)
    assert rows[0]["bytes"] == (folder / "model.onnx").stat().st_size
    screen = capsys.readouterr().out
    assert "limit:" in screen and "torch-eager" in screen and "…" not in screen
    assert max(len(line) for line in screen.splitlines() if not line.startswith("->")) <= 80


# ------------------------------------------------------------------------------------------------- mistakes


def test_missing_model_in_one_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.inference", "--model", str(tmp_path / "model.onnx")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: there is no model")
    assert len(answer.stderr.splitlines()) == 1


def test_faulty_models(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no ONNX file here"):
        main(InferenceOptions())
    path = tmp_path / "model.onnx"
    path.write_text("no model")
    with pytest.raises(UserError, match="no ONNX model"):
        main(InferenceOptions())
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(UserError, match="does not say which weights"):
        main(InferenceOptions())


def test_a_run_with_other_weights_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = folder / "model.onnx"
    weights = get_metadata(onnx.load(model))["weights_sha256"]
    assert find_run(None, model, weights) == folder / "checkpoint.safetensors"
    other = write_run(tmp_path / "runs" / "other", seed=1)
    with pytest.raises(UserError, match="other weights"):
        find_run(other, model, weights)
    moved = tmp_path / "moved.onnx"
    moved.write_bytes(model.read_bytes())
    with pytest.raises(UserError, match="has its weights"):
        find_run(None, moved, weights)
    damaged = tmp_path / "runs" / "another" / "checkpoint.safetensors"
    damaged.parent.mkdir()
    damaged.write_bytes(b"damaged")
    right = write_run(tmp_path / "runs" / "right", seed=0)
    assert find_run(None, moved, weights).resolve() == right


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engines": ("jax-jit",)}, "--engines needs onnxruntime"),
        ({"batches": (0,)}, "--batches 0"),
        ({"batches": ()}, "--batches and --threads need"),
        ({"threads": (10_000,)}, "--threads 10000"),
        ({"rounds": 0}, "--rounds 0"),
        ({"seconds": 0.0}, "--seconds 0.0"),
    ],
)
def test_faulty_options(options, message):
    with pytest.raises(UserError, match=message):
        InferenceOptions(**options).settings()


def test_contenders(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(inference.importlib.util, "find_spec", lambda name: name != "openvino")
    options = InferenceOptions(
        engines=("jax-jit", "onnxruntime", "openvino-f32"), also=(folder / "model.onnx",)
    )
    contenders = list_contenders(options, folder / "model.onnx", folder / "checkpoint.safetensors", tmp_path)
    assert [each.label for each in contenders] == ["onnxruntime", "onnxruntime float32", "jax-jit"]
