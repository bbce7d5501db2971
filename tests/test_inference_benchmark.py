import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import inference, inference_runs, inference_study, inference_worker
from benchmarks.inference import InferenceOptions, find_checkpoint, flops_per_image, list_contenders
from benchmarks.inference_engines import ENGINES, Job, in_chunks, load_engine
from benchmarks.inference_report import draw, notes, tabulate
from benchmarks.inference_runs import Cell, Contender, Limits, Measurement, Settings
from benchmarks.inference_study import pad_channels
from export.build import build_model
from export.fold import Convolution, fold, steps_of
from export.images import Images, random_images
from export.metadata import describe, get_metadata, set_metadata
from export.verify import run_model
from recipe.checkpoint import load_checkpoint, save_checkpoint
from recipe.errors import UserError
from recipe.networks import NETWORKS
from tests.test_export import make_checkpoint, torch_logits

TINY = Settings(batches=(1, 3), threads=(1,), rounds=2, seconds=0.01, warm_seconds=0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights and its file, unverified, since no figure of these is of interest."""
    path = tmp_path_factory.mktemp("run")
    checkpoint = make_checkpoint(NETWORKS["net9954"], np.random.default_rng(0))
    save_checkpoint(path / "checkpoint.safetensors", checkpoint)
    model = build_model(checkpoint.network, fold(steps_of(checkpoint.network, checkpoint.model)))
    set_metadata(model, describe(checkpoint, "float32", "table"))
    onnx.save(model, path / "model.onnx")
    return path


@pytest.fixture
def images() -> Images:
    return Images("random", random_images(32), np.zeros(32, np.uint8), None)


# ------------------------------------------------------------------------------------------------ statistics


def test_summary_of_known_latencies():
    """1 to 100 microseconds in two rounds."""
    nanoseconds = 1000 * np.arange(1, 101, dtype=np.int64)
    cell = Cell([nanoseconds[::2], nanoseconds[1::2]])
    summary = cell.summary(batch=8)
    assert summary["calls"] == 100
    assert summary["p50_us"] == pytest.approx(50.5)
    assert summary["p90_us"] == pytest.approx(90.1)
    assert summary["p99_us"] == pytest.approx(99.01)
    assert summary["max_us"] == 100
    assert summary["images_per_second"] == pytest.approx(8 / 50.5e-6)
    assert summary["round_medians_us"] == [50, 51]


def measurement(label: str, *rounds: int, classes: int = 0, file: str = "model.onnx") -> Measurement:
    """One cell whose calls take as many nanoseconds, and as many images of another class than the rest."""
    logits = np.zeros((32, 10), np.float32)
    logits[:, 0] = 1
    logits[:classes, 1] = 2
    return Measurement(
        Contender(label, "onnxruntime", Path(file), Path("checkpoint")),
        {(1, 1): Cell([np.full(5, each, np.int64) for each in rounds])},
        import_ns=[1],
        load_ns=[1],
        first_run_ns=[1],
        peak_bytes=[1],
        logits=logits,
    )


def test_ratios_are_taken_round_by_round(images):
    """A machine that slowed down tenfold after the first round changes no ratio."""
    first, other = measurement("first", 100, 1000, 1000), measurement("other", 50, 500, 1400)
    result = tabulate([first, other], Limits({1: 1e11}), measurement("floor", 1, 1, 1), images, 1000)
    ratios = {cell["label"]: cell["ratio"] for cell in result["cells"]}
    assert ratios == {"first": 1, "other": 0.5}
    assert result["limit"]["1"]["us_per_image"] == pytest.approx(0.01)
    losses = {cell["label"]: cell["loss"] for cell in result["cells"]}
    assert losses == {"first": False, "other": False}  # not in every round
    other.cells[1, 1].latencies[2] //= 2
    result = tabulate([first, other], Limits({1: 1e11}), measurement("floor", 1, 1, 1), images, 1000)
    assert "first loses to other at batch 1, 1 thread: 2.00 times as long" in notes(result)


def test_accuracy_that_a_file_loses_is_said(images):
    first = measurement("first", 100)
    int8 = measurement("int8", 150, classes=1, file="int8.onnx")
    result = tabulate([first, int8], Limits({1: 1e11}), measurement("floor", 1), images, 1000)
    assert result["engines"]["int8"]["accuracy"] == 31 / 32
    assert result["engines"]["int8"]["same_class"] == 31
    (line,) = [line for line in notes(result) if line.startswith("int8")]
    assert "1.50 to 1.50 times as long" in line
    assert "more than 0.05 points lost" in line


def test_picture(images):
    first = measurement("first", 100)
    result = tabulate([first], Limits({1: 1e11}), measurement("floor", 1), images, 1000)
    assert draw(result, "title").startswith(b"\x89PNG")


def test_warm_up_ends_when_stable_and_not_before():
    times = iter([*range(10_000_000, 1_000_000, -1_000_000), *[1_000_000] * 10_000])
    calls = []

    def call() -> None:
        calls.append(None)
        end = inference_worker.time.perf_counter_ns() + next(times)
        while inference_worker.time.perf_counter_ns() < end:
            pass

    assert inference_worker.warm_up(call, 10**10)
    assert len(calls) > 9
    assert not inference_worker.warm_up(lambda: None, 0)  # no time for three windows


def test_timing_makes_at_least_ten_calls():
    latencies = inference_worker.time_calls(lambda: None, 0)
    assert len(latencies) == inference_worker.MIN_CALLS
    assert latencies.dtype == np.int64


def test_peak_memory_is_the_process_s_own():
    """A child of a process with 300 MB more than it needs does not report them."""
    code = (
        "import subprocess, sys; ballast = bytearray(b'x' * 300_000_000);"
        "print(subprocess.run([sys.executable, '-c', 'from benchmarks.inference_worker import peak_bytes;"
        " print(peak_bytes())'], capture_output=True, text=True).stdout)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5_000_000 < int(answer.stdout) < 200_000_000


# --------------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk", [None, 2])
def test_every_engine_computes_the_same_logits(engine, chunk, folder):
    pytest.importorskip(ENGINES[engine].modules[0])
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    images = random_images(5)
    options = {} if chunk is None else {"chunk": chunk}
    paths = str(folder / "model.onnx"), str(folder / "checkpoint.safetensors")
    with ExitStack() as stack:
        predict = load_engine(Job(engine, "cpu", 1, *paths, options), stack)
        logits = np.array(predict(images))
    np.testing.assert_allclose(
        logits, torch_logits(checkpoint.network, checkpoint.model, images), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "options",
    [{"spinning": False}, {"fixed_batch": True}, {"binding": True}, {"disabled": ["NchwcTransformer"]}],
)
def test_options_of_onnxruntime(options, folder):
    paths = str(folder / "model.onnx"), str(folder / "checkpoint.safetensors")
    images = random_images(5)
    with ExitStack() as stack:
        predict = load_engine(Job("onnxruntime", "cpu", 1, *paths, options), stack)
        wanted, _ = run_model((folder / "model.onnx").read_bytes(), images, 5)
        for some in (images, images[:2]):
            np.testing.assert_allclose(predict(some), wanted[: len(some)], rtol=0, atol=1e-5)


def test_chunks_and_the_last_incomplete_batch():
    sizes = []

    def predict(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return images[:, 0, 0, :10]

    images = random_images(7)
    np.testing.assert_array_equal(in_chunks(predict, 3)(images), images[:, 0, 0, :10])
    assert sizes == [3, 3, 1]
    sizes.clear()
    np.testing.assert_array_equal(inference_worker.predict_all(predict, images, 4), images[:, 0, 0, :10])
    assert sizes == [4, 4]


def test_padding_channels_changes_nothing(rng):
    network = NETWORKS["net10040"]
    checkpoint = make_checkpoint(network, rng)
    steps = fold(steps_of(network, checkpoint.model))
    padded = pad_channels(steps, 16)
    channels = [len(step.weight) for step in padded if isinstance(step, Convolution)]
    assert channels == [16] * 8 + [10]
    images = random_images(5)
    first, second = (
        run_model(build_model(network, each).SerializeToString(), images, 5)[0] for each in (steps, padded)
    )
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)


def test_flops(rng):
    """Two for each of the multiplications that the layer tables come to."""
    assert flops_per_image(make_checkpoint(NETWORKS["net10040"], rng)) == 2 * 3_516_448
    assert flops_per_image(make_checkpoint(NETWORKS["net9954"], rng)) == 2 * 1_068_320


# ---------------------------------------------------------------------------------------------- the processes


def test_rounds_alternate_and_failures_are_left_out(folder, images, monkeypatch):
    order = []

    def run(task, _):
        job = task["job"]
        order.append((job["threads"], job["engine"]))
        if job["engine"] == "jax-jit":
            raise inference_runs.WorkerError("no compiler")
        if job["engine"] == "matmul":
            return {"flops_per_second": {"numpy": 1e11, "torch": 2e11}, "pinned": True}, {}
        result = dict.fromkeys(("import_ns", "load_ns", "first_run_ns", "peak_bytes"), 1)
        arrays = {f"latencies_{batch}": np.ones(3, np.int64) for batch in task["batches"]}
        return result | {"stable": {"1": True}}, arrays

    monkeypatch.setattr(inference_runs, "_run", run)
    settings = replace(TINY, batches=(1,), threads=(1, 2), rounds=3)
    first = Contender("onnxruntime", "onnxruntime", folder / "model.onnx", folder)
    contenders = [first, replace(first, label="jax", engine="jax-jit")]
    (ours, jax), limits = inference_runs.measure(contenders, images.test, settings)
    one_round = [(threads, engine) for threads in (1, 2) for engine in ("matmul", "onnxruntime")]
    assert [each for each in order if each[1] != "jax-jit"] == one_round + one_round[::-1] + one_round
    assert [each for each in order if each[1] == "jax-jit"] == [(1, "jax-jit")]
    assert jax.failure == "no compiler"
    assert len(ours.cells[2, 1].latencies) == 3
    assert limits == Limits({1: 2e11, 2: 2e11}, pinned=True)
    with pytest.raises(UserError, match="jax does not run here: no compiler"):
        inference_runs.measure(contenders[::-1], images.test, settings)


def test_a_worker_s_last_word_is_its_failure(folder, images):
    contender = Contender("broken", "onnxruntime", folder / "checkpoint.safetensors", folder)
    with pytest.raises(
        UserError, match=r"broken does not run here: .*Protobuf|broken does not run here: .*INVALID"
    ):
        inference_runs.measure([contender], images.test, TINY)


def test_whole_run(folder, images, tmp_path, monkeypatch, capsys):
    """Real processes of three engines at tiny settings; the result file, the picture and the screen."""
    monkeypatch.setattr(inference, "load_images", lambda *_: images)
    monkeypatch.setattr(InferenceOptions, "settings", lambda self: TINY)
    out = tmp_path / "inference.json"
    options = InferenceOptions(folder / "model.onnx", engines=("onnxruntime", "torch-eager"), out=out)
    inference.main(options)
    result = json.loads(out.read_text())
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert list(result["engines"]) == ["onnxruntime", "torch-eager"]
    for label, about in result["engines"].items():
        assert about["same_class"] == about["images"] == 32, label
        assert about["largest_difference"] < 1e-5
        assert about["import_ms"] > 0 and about["peak_mib"] > 10
    cells = {(cell["label"], cell["threads"], cell["batch"]): cell for cell in result["cells"]}
    assert set(cells) == {(label, 1, batch) for label in result["engines"] for batch in (1, 3)}
    for cell in cells.values():
        assert 0 < cell["p50_us"] <= cell["p90_us"] <= cell["p99_us"] <= cell["max_us"]
        assert cell["calls"] >= 2 * inference_worker.MIN_CALLS
        assert len(cell["round_medians_us"]) == 2
    assert result["model"]["metadata"] == get_metadata(onnx.load(folder / "model.onnx"))
    assert result["flops_per_image"] == 2 * 1_068_320
    assert result["machine"]["versions"]["onnxruntime"]
    screen = capsys.readouterr().out
    for words in ("arithmetic limit", "empty graph", "torch-eager", result["model"]["sha256"]):
        assert words in screen


# --------------------------------------------------------------------------------------------------- mistakes


def run_cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.inference", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_missing_model_in_one_line(tmp_path):
    answer = run_cli("--model", tmp_path / "model.onnx", "--quick")
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: there is no model")
    assert len(answer.stderr.splitlines()) == 1


def write_other_model(path: Path) -> None:
    value = helper.make_tensor_value_info
    shape = ["batch", 3, 224, 224]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["data"], ["out"])],
        "other",
        [value("data", TensorProto.FLOAT, shape)],
        [value("out", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_faulty_files(folder, tmp_path):
    path = tmp_path / "model.onnx"
    write_other_model(path)
    with pytest.raises(UserError, match=r"other inputs or outputs: data float \(batch, 3, 224, 224\)"):
        inference.main(InferenceOptions(path))
    path.write_bytes((folder / "model.onnx").read_bytes()[:-1000])
    with pytest.raises(UserError, match="truncated"):
        inference.main(InferenceOptions(path))
    path.write_text("no model")
    with pytest.raises(UserError, match="no ONNX model"):
        inference.main(InferenceOptions(path))
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(UserError, match="does not say which weights"):
        inference.main(InferenceOptions(path))


def test_checkpoint_with_other_weights(folder, tmp_path, rng, monkeypatch):
    """It is never taken for the model's own, whether it is named or found."""
    monkeypatch.chdir(tmp_path)
    model = folder / "model.onnx"
    about = get_metadata(onnx.load(model))
    assert find_checkpoint(None, model, about) == folder / "checkpoint.safetensors"
    other = tmp_path / "runs" / "other" / "checkpoint.safetensors"
    save_checkpoint(other, make_checkpoint(NETWORKS["net9954"], np.random.default_rng(1)))
    with pytest.raises(UserError, match="other weights"):
        find_checkpoint(other, model, about)
    moved = tmp_path / "moved.onnx"
    moved.write_bytes(model.read_bytes())
    with pytest.raises(UserError, match="no checkpoint with the weights of"):
        find_checkpoint(None, moved, about)
    with pytest.raises(UserError, match="there is no checkpoint"):
        find_checkpoint(tmp_path / "none", model, about)
    damaged = tmp_path / "runs" / "another" / "checkpoint.safetensors"
    damaged.parent.mkdir()
    damaged.write_bytes(b"damaged")
    right = tmp_path / "runs" / "right" / "checkpoint.safetensors"
    save_checkpoint(right, load_checkpoint(folder / "checkpoint.safetensors"))
    assert find_checkpoint(None, moved, about).resolve() == right


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engines": ("tensorflow",)}, "--engines 'tensorflow' is unknown"),
        ({"engines": ("jax-jit",)}, "lacks onnxruntime"),
        ({"batches": (0,)}, "--batches must be"),
        ({"batches": ()}, "--batches must be"),
        ({"threads": (10_000,)}, "--threads must be"),
        ({"rounds": 0}, "--rounds 0 is out of range"),
        ({"seconds": 0.0}, "--seconds 0.0 is out of range"),
        ({"device": "tpu"}, "--device 'tpu' is unknown"),
    ],
)
def test_faulty_options(options, message):
    with pytest.raises(UserError, match=message):
        InferenceOptions(Path("model.onnx"), **options).settings()


def test_contenders(folder, monkeypatch):
    monkeypatch.setattr(inference, "_installed", lambda engine: engine != "openvino")
    options = InferenceOptions(folder / "model.onnx", also=(folder / "model.onnx",), device="cpu")
    labels = [each.label for each in list_contenders(options, folder / "checkpoint.safetensors")]
    assert labels == ["onnxruntime", "onnxruntime model", "torch-eager", "torch-compile", "jax-jit"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        list_contenders(replace(options, device="cuda"), folder / "checkpoint.safetensors")


def test_study_s_graphs_compute_the_same(folder, images, tmp_path):
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    wanted = torch_logits(checkpoint.network, checkpoint.model, images.test)
    graphs = inference_study.write_graphs(checkpoint, images, tmp_path)
    assert len(graphs) >= 3
    for label, path in graphs.items():
        logits, _ = run_model(path.read_bytes(), images.test, 32)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-5, err_msg=label)
