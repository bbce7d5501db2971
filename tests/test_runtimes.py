"""The exported files in runtimes that the project does not need; those not installed are skipped."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from benchmarks.inference.engines import ENGINES, Contender, Predict
from benchmarks.inference.runtimes import RUNTIMES

from export.images import load_images
from export.pipeline import export
from recipe.checkpoint import load_checkpoint
from tests.helpers import FRAMEWORKS, train_digits

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]
FLOAT32 = 1e-4  # allowed difference of a logit; digits give logits up to 30
WITHOUT_INT8 = {"ncnn", "onnx2torch", "LiteRT"}  # the first two refuse the file, the third computes nonsense
NODE_PATHS = os.environ.get("NODE_PATH", "").split(":")


@pytest.fixture(scope="module")
def export_digits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Makes a network's float32 or int8 file, after twelve epochs on the digits, when first asked for."""
    folder = tmp_path_factory.mktemp("files")

    @cache
    def checkpoint(network: str) -> Path:
        return train_digits(FRAMEWORKS["torch"], folder / network, network=network, epochs=12)

    @cache
    def make(network: str, int8: bool) -> Path:
        run = load_checkpoint(checkpoint(network))
        file = folder / f"{network}{'-int8' * int8}.onnx"
        file.write_bytes(export(run, load_images(run, None), int8).content)
        return file

    return make


def load(engine: str, model: Path) -> Predict:
    return ENGINES[engine][1](Contender(engine, engine, model, model), 1)


@pytest.fixture(params=["openvino-f32", *RUNTIMES])
def runtime(request: pytest.FixtureRequest) -> str:
    lacking = {
        "onnxruntime-web": not any(Path(path, "onnxruntime-web").exists() for path in NODE_PATHS),
        "LiteRT": not shutil.which("onnx2tf"),
        "tinygrad": not shutil.which("clang"),
    }
    if not find_spec(ENGINES[request.param][0][0]) or lacking.get(request.param):
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.mark.parametrize("int8", [False, True])
def test_a_file_gives_the_same_logits_as_in_onnx_runtime(int8, network, runtime, export_digits, digits):
    if int8 and runtime in WITHOUT_INT8:
        pytest.skip(f"{runtime} does not take the int8 file")
    images = digits.val_images[:50, None].astype(np.float32) / 255
    file = export_digits(network.name, int8)
    expected = load("onnxruntime", file)(images)
    predict = load(runtime, file)
    logits = np.concatenate([np.array(predict(part)) for part in (images[:1], images[1:])])
    assert logits.shape == expected.shape
    if int8:  # a number on the boundary between two levels may be rounded to either of them
        assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.96
        assert np.abs(logits - expected).max() <= 0.05 * np.abs(expected).max()
    else:
        np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=FLOAT32)
