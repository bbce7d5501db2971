"""The inference benchmark: its statistics, its engines, and the program on tiny settings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks import inference
from benchmarks.engines import ENGINES, TORCH_EXPORT, Contender, Engine
from benchmarks.inference import InferenceOptions, Measurement, list_contenders, load_run, main, make_rows
from benchmarks.record import read_rows
from benchmarks.runtimes import RUNTIMES
from export.images import Images, random_images, to_unit
from recipe.console import UserError
from recipe.networks import NETWORKS

MODEL = inference.SHIPPED
CHECKPOINT = MODEL.parent / "checkpoint.safetensors"


@pytest.fixture(autouse=True)
def _threads():
    """An engine sets PyTorch's number of threads; other tests in this process have theirs."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images(digits) -> Images:
    return Images("digits", to_unit(digits.val_images[:32]), digits.val_labels[:32], digits.train_images)


def run_file(path: Path, images: np.ndarray) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(path).run(["logits"], {"image": images})[0])


def test_ratios_are_taken_round_by_round():
    """A machine that becomes ten times slower after the first round changes no ratio."""
    logits = np.zeros((32, 10), np.float32)
    logits[:, 0] = 1
    other = logits.copy()
    other[0, 1] = 2
    contender = Contender("onnxruntime", ENGINES["onnxruntime"][1], MODEL, CHECKPOINT)

    def measured(*rounds, logits, settled):
        return Measurement(contender, {4: [np.full(5, n) for n in rounds]}, {4: settled}, logits)

    first = measured(100, 1000, 1000, logits=logits, settled=True)
    second = measured(50, 500, 1400, logits=other, settled=False)
    images = Images("random", random_images(32), np.zeros(32, np.uint8), None)
    ours, theirs = make_rows([first, second], NETWORKS["net9954"], images)
    assert (ours["ratio"], theirs["ratio"]) == (1, 0.5)
    assert (ours["settled"], theirs["settled"]) == (True, False)
    assert (theirs["same_class"], theirs["images"], theirs["largest_difference"]) == (31, 32, 2)
    assert theirs["accuracy"] == pytest.approx(31 / 32, rel=1e-4)
    assert (ours["calls"], ours["p50_us"]) == (15, 1.0)


LIGHT = ("onnxruntime", "torch-eager")
ENGINE_CASES = [
    pytest.param(name, int8, marks=() if name in LIGHT else pytest.mark.slow)
    for name in ("onnxruntime", "torch-eager", "jax-jit", TORCH_EXPORT, "torch-compile", *RUNTIMES)
    for int8 in (False, True)
    if not int8 or name in {"onnxruntime", *RUNTIMES} - {"ncnn", "onnx2torch"}  # the others take float32
]


@pytest.mark.parametrize(("engine", "int8"), ENGINE_CASES)
def test_engines_compute_the_same_logits(engine, int8, images, tmp_path):
    """Within 1e-4 of ONNX Runtime's logits, which are up to 30; with int8, where it is taken, the same class.

    A number on the boundary between two int8 levels may be rounded to either of them.
    """
    if engine in RUNTIMES:
        pytest.importorskip(RUNTIMES[engine][1])
    names = ["onnxruntime int8"] if int8 else [engine] if engine in ENGINES else []
    contender = list_contenders(names, MODEL, CHECKPOINT, images, tmp_path)[-1]
    if engine in RUNTIMES:
        contender = replace(contender, load=RUNTIMES[engine][2])
    logits = Engine(contender, 1, images.test).logits(batch=5 if engine in ENGINES else 1)
    expected = run_file(contender.model if int8 else MODEL, images.test)
    if int8:
        assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.96
    else:
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.subprocess
def test_a_contender_that_fails_is_left_out_and_the_first_must_work(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = Contender("onnxruntime", ENGINES["onnxruntime"][1], MODEL, CHECKPOINT)
    bad = replace(good, label="bad", model=tmp_path / "missing.onnx")
    ours, theirs = inference.measure([good, bad], images.test, [1, 3], rounds=2, seconds=0.01)
    assert [len(ours.latencies[batch]) for batch in (1, 3)] == [2, 2]
    assert theirs.failed and theirs.logits is None and not ours.failed
    with pytest.raises(UserError, match="bad"):
        inference.measure([bad, good], images.test, [1], rounds=1, seconds=0.01)


@pytest.mark.subprocess
def test_whole_run(images, tmp_path, monkeypatch):
    """With real processes; rows go beside the runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inference, "load_images", lambda *_: images)
    engines = ("onnxruntime", "onnxruntime int8")
    main(InferenceOptions(engines=engines, batches=(3, 1), rounds=2, seconds=0.01))
    rows = read_rows("inference", tmp_path / "runs" / "bench")
    cases = [(engine, batch) for engine in engines for batch in (1, 3)]
    assert [(row["engine"], row["batch"]) for row in rows] == cases
    for row in rows:
        assert row["same_class"] >= 31 and row["images"] == 32 and row["calls"] >= 20
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"]
        assert row["versions"]["onnxruntime"] and isinstance(row["settled"], bool)
    assert rows[0]["bytes"] == MODEL.stat().st_size and rows[0]["largest_difference"] == 0


def test_the_run_of_a_model_is_found_or_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_run(MODEL, None, None)[0] == CHECKPOINT
    moved = tmp_path / "moved.onnx"
    moved.write_bytes(MODEL.read_bytes())
    with pytest.raises(UserError, match="--checkpoint"):
        load_run(moved, None, None)
    other = MODEL.parent.parent / "net9954-jax"
    with pytest.raises(UserError, match="other weights"):
        load_run(moved, other, None)
    for name, content in (("damaged", b"damaged"), ("right", CHECKPOINT.read_bytes())):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "checkpoint.safetensors").write_bytes(content)
    assert load_run(moved, None, None)[0] == Path("runs/right/checkpoint.safetensors")


def test_faulty_options_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError):
        main(InferenceOptions(model=path))
    model = onnx.load(MODEL)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(UserError, match="does not say which weights"):
        main(InferenceOptions(model=path))
    for changes in ({"batches": (0,)}, {"batches": ()}, {"threads": 10_000}, {"rounds": 0}, {"seconds": 0.0}):
        with pytest.raises(UserError, match=f"--{next(iter(changes))}"):
            main(InferenceOptions(**changes))
