"""The programs that run a network: each turns a job into a function from images to logits.

Imported by the worker processes, so nothing heavy is imported before it is asked for.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

Predict = Callable[[np.ndarray], np.ndarray]  # images float32 (N, 1, 28, 28) in 0..1 -> logits (N, 10)


@dataclass(frozen=True)
class Job:
    """One engine in one process."""

    engine: str  # a key of ENGINES
    device: str  # cpu or cuda
    threads: int
    model: str  # path of the ONNX file
    checkpoint: str  # path of the checkpoint with the same weights
    options: dict[str, Any] = field(default_factory=dict)  # of the engine, see its loader


@dataclass(frozen=True)
class Engine:
    """How to import and load it."""

    modules: tuple[str, ...]  # importing them is timed apart from loading
    load: Callable[[Job, ExitStack], Predict]
    devices: tuple[str, ...] = ("cpu",)


def load_onnxruntime(job: Job, stack: ExitStack) -> Predict:
    """ONNX Runtime on the file.

    Options: ``spinning`` (idle threads wait in a loop; default True, as is ONNX Runtime's), ``fixed_batch``
    (a session for each batch size), ``disabled`` (names of graph optimisations to leave out), ``binding``
    (inputs and outputs bound to buffers).
    """
    import onnxruntime

    content = Path(job.model).read_bytes()
    options = job.options

    def make_session(batch: int | None) -> onnxruntime.InferenceSession:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = job.threads
        settings.inter_op_num_threads = 1
        spinning = "1" if options.get("spinning", True) else "0"
        settings.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        if batch is not None:
            settings.add_free_dimension_override_by_name("batch", batch)
        # Without TF32 on a GPU, so that all engines compute in float32.
        cuda = ("CUDAExecutionProvider", {"use_tf32": "0"})
        providers = [cuda] if job.device == "cuda" else ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(
            content, settings, providers=providers, disabled_optimizers=options.get("disabled")
        )

    if options.get("fixed_batch"):
        sessions: dict[int, onnxruntime.InferenceSession] = {}

        def predict_fixed(images: np.ndarray) -> np.ndarray:
            session = sessions.get(len(images))
            if session is None:
                session = sessions[len(images)] = make_session(len(images))
            return np.asarray(session.run(["logits"], {"image": images})[0])

        return predict_fixed

    session = make_session(None)
    names = [session.get_outputs()[0].name]
    if not options.get("binding"):
        return lambda images: np.asarray(session.run(names, {"image": images})[0])

    def predict_bound(images: np.ndarray) -> np.ndarray:
        binding = session.io_binding()
        binding.bind_cpu_input("image", images)
        binding.bind_output(names[0])
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()[0]

    return predict_bound


def load_torch_eager(job: Job, stack: ExitStack) -> Predict:
    """PyTorch, operation by operation. Options: ``channels_last``."""
    return _load_torch(job, stack, compiled=False)


def load_torch_compile(job: Job, stack: ExitStack) -> Predict:
    """PyTorch compiled by batch size. Options: ``channels_last``; ``freezing`` (weights are constants)."""
    return _load_torch(job, stack, compiled=True)


def _load_torch(job: Job, stack: ExitStack, compiled: bool) -> Predict:
    import torch

    from recipe.checkpoint import load_checkpoint
    from recipe.warp import MEAN, STD
    from torch_impl.model import ConvNet, load_tensors

    torch.set_num_threads(job.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # as above
    checkpoint = load_checkpoint(Path(job.checkpoint))
    model = ConvNet(checkpoint.network, dropout=0.0).eval()
    load_tensors(model, checkpoint.model)
    layout = torch.channels_last if job.options.get("channels_last") else torch.contiguous_format
    model = model.to(torch.device(job.device), torch.float32).to(memory_format=layout)

    def logits(images: torch.Tensor) -> torch.Tensor:
        return model((images - MEAN) / STD)

    if compiled:
        if job.options.get("freezing"):
            import torch._inductor.config

            torch._inductor.config.freezing = True
            stack.enter_context(torch.no_grad())  # inductor does not freeze in inference mode
        else:
            stack.enter_context(torch.inference_mode())
        logits = torch.compile(logits, dynamic=False)
    else:
        stack.enter_context(torch.inference_mode())
    device = torch.device(job.device)
    return lambda images: logits(torch.from_numpy(images).to(device)).cpu().numpy()


def load_jax(job: Job, stack: ExitStack) -> Predict:
    """Flax under ``jax.jit``, compiled for each batch size, the weights as constants."""
    import jax

    from export.flax_export import flax_model
    from recipe.checkpoint import load_checkpoint
    from recipe.warp import MEAN, STD

    jax.config.update("jax_default_matmul_precision", "highest")  # not TF32, as above
    checkpoint = load_checkpoint(Path(job.checkpoint))
    tensors = {name: tensor.astype(np.float32) for name, tensor in checkpoint.model.items()}
    model = flax_model(checkpoint.network, tensors)

    @jax.jit
    def logits(images: jax.Array) -> jax.Array:
        return model((images.transpose(0, 2, 3, 1) - MEAN) / STD)

    return lambda images: np.asarray(logits(images))


def load_openvino(job: Job, stack: ExitStack) -> Predict:
    """OpenVINO on the file, compiled for each batch size. Options: ``precision`` (f32 or bf16)."""
    import openvino  # pyright: ignore[reportMissingImports] (an optional extra)

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": job.options.get("precision", "f32"),
    }
    requests: dict[int, Any] = {}

    def predict(images: np.ndarray) -> np.ndarray:
        request = requests.get(len(images))
        if request is None:
            model = core.read_model(job.model)
            model.reshape(list(images.shape))
            request = core.compile_model(model, "CPU", settings).create_infer_request()
            requests[len(images)] = request
        return request.infer({"image": images}, share_inputs=True)["logits"]

    return predict


def in_chunks(predict: Predict, size: int) -> Predict:
    """The same function, called for at most ``size`` images at a time."""

    def predict_in_chunks(images: np.ndarray) -> np.ndarray:
        if len(images) <= size:
            return predict(images)
        return np.concatenate([predict(images[at : at + size]) for at in range(0, len(images), size)])

    return predict_in_chunks


ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        "onnxruntime": Engine(("onnxruntime",), load_onnxruntime, ("cpu", "cuda")),
        "torch-eager": Engine(("torch", "torch_impl.model"), load_torch_eager, ("cpu", "cuda")),
        "torch-compile": Engine(("torch", "torch_impl.model"), load_torch_compile, ("cpu", "cuda")),
        "jax-jit": Engine(("jax", "jax_impl.model"), load_jax, ("cpu", "cuda")),
        "openvino": Engine(("openvino",), load_openvino),
    }
)


def load_engine(job: Job, stack: ExitStack) -> Predict:
    """The job's function; ``chunk`` in its options limits how many images go into one call."""
    predict = ENGINES[job.engine].load(job, stack)
    return in_chunks(predict, job.options["chunk"]) if "chunk" in job.options else predict
