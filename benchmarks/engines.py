"""The programs that run a network: each becomes a function from images to logits, in a process of its own.

The processes import this module, so nothing heavy is imported before it is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workers import time_calls, warm_up
from recipe.data import MEAN, STD

Predict = Callable[[np.ndarray], np.ndarray]  # images float32 (N, 1, 28, 28) in 0..1 -> logits (N, 10)
TORCH_EXPORT = "torch.onnx.export"


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    label: str
    load: Callable[["Contender", int], Predict]  # with this many threads
    model: Path  # ONNX file
    checkpoint: Path  # with the same weights


def load_onnxruntime(contender: Contender, threads: int) -> Predict:
    """ONNX Runtime on the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(contender.model, options, providers=["CPUExecutionProvider"])
    image, logits = session.get_inputs()[0].name, session.get_outputs()[0].name
    return lambda images: np.asarray(session.run([logits], {image: images})[0])


def normalised(checkpoint: Path) -> Any:
    """The trained network in PyTorch, behind the normalisation that the ONNX file does too."""
    import torch

    from torch_impl.model import load_model

    class Normalised(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = load_model(checkpoint)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.model((image - MEAN) / STD)

    return Normalised().eval()


def load_torch_eager(contender: Contender, threads: int, compiled: bool = False) -> Predict:
    """PyTorch, operation by operation."""
    import torch

    torch.set_num_threads(threads)
    model = normalised(contender.checkpoint)
    if compiled:
        model = torch.compile(model, dynamic=False)

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return predict


def load_torch_compile(contender: Contender, threads: int) -> Predict:
    """PyTorch, compiled for each batch size."""
    return load_torch_eager(contender, threads, compiled=True)


def load_jax(contender: Contender, threads: int) -> Predict:
    """Flax under ``jax.jit``, compiled for each batch size, the weights as constants."""
    import jax

    from jax_impl.model import load_model

    model = load_model(contender.checkpoint)

    @jax.jit
    def logits(images: jax.Array) -> jax.Array:
        return model((images.transpose(0, 2, 3, 1) - MEAN) / STD)

    return lambda images: np.asarray(logits(images))


def load_openvino(contender: Contender, threads: int, precision: str = "f32") -> Predict:
    """OpenVINO on the file, compiled for each batch size."""
    import openvino  # pyright: ignore[reportMissingImports] (an optional extra)

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    requests: dict[int, Any] = {}

    def predict(images: np.ndarray) -> np.ndarray:
        request = requests.get(len(images))
        if request is None:
            model = core.read_model(contender.model)
            model.reshape(list(images.shape))
            request = core.compile_model(model, "CPU", settings).create_infer_request()
            requests[len(images)] = request
        return request.infer({"image": images}, share_inputs=True)["logits"]

    return predict


def load_openvino_bf16(contender: Contender, threads: int) -> Predict:
    """OpenVINO, computing in bfloat16."""
    return load_openvino(contender, threads, "bf16")


def export_with_torch(checkpoint: Path, out: Path) -> None:
    """Write what PyTorch's own exporter makes of the network, in one file."""
    import torch

    torch.onnx.export(
        normalised(checkpoint),
        (torch.zeros(2, 1, 28, 28),),  # with one image the batch size would become fixed
        out,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


# For each engine the module that it needs, and the function that loads it.
ENGINES: dict[str, tuple[str, Callable[[Contender, int], Predict]]] = {
    "onnxruntime": ("onnxruntime", load_onnxruntime),
    "onnxruntime int8": ("onnxruntime", load_onnxruntime),
    "torch-eager": ("torch", load_torch_eager),
    "torch-compile": ("torch", load_torch_compile),
    "jax-jit": ("jax", load_jax),
    "openvino-f32": ("openvino", load_openvino),
    "openvino-bf16": ("openvino", load_openvino_bf16),
    TORCH_EXPORT: ("onnxruntime", load_onnxruntime),
}


class Engine:
    """An engine in a process of its own, loaded; `benchmarks.workers.Worker` calls its methods.

    Args:
        contender: what to load.
        threads: how many it may use.
        images: float32 (N, 1, 28, 28) in 0..1.
    """

    def __init__(self, contender: Contender, threads: int, images: np.ndarray):
        self.images, self.predict = images, contender.load(contender, threads)

    def time_batch(self, batch: int, seconds: float) -> tuple[np.ndarray, bool]:
        """Latencies of calls in nanoseconds, int64, and True if they settled in the warm-up."""
        images = np.ascontiguousarray(np.resize(self.images, (batch, *self.images.shape[1:])))
        self.predict(images)  # may compile, which is not part of the warm-up
        settled = warm_up(lambda: self.predict(images))
        return time_calls(lambda: self.predict(images), seconds), settled

    def logits(self, batch: int) -> np.ndarray:
        """Logits of all images, in calls of exactly ``batch``; first images fill up the last call."""
        count = len(self.images)
        padded = np.resize(self.images, (-(-count // batch) * batch, *self.images.shape[1:]))
        # Copied, because an engine may return a buffer that the next call overwrites.
        parts = [np.array(self.predict(padded[at : at + batch])) for at in range(0, len(padded), batch)]
        return np.concatenate(parts)[:count]
