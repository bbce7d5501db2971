"""Runtimes that the project does not need, on our files: each becomes a function from images to logits.

None of them is a dependency, and some cannot be installed together. ``pip install`` takes the names in
`RUNTIMES`. tinygrad also needs clang. LiteRT needs the program ``onnx2tf``, which may be installed in another
environment if PATH has it. onnxruntime-web runs in Node.js: ``npm install --prefix DIR onnxruntime-web``, and
``NODE_PATH=DIR/node_modules``.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

Predict = Callable[[np.ndarray], np.ndarray]  # images float32 (N, 1, 28, 28) in 0..1 -> logits (N, 10)

# Answers images with logits: the number of images (uint32) and their pixels, then 10 numbers for each.
NODE_PROGRAM = """
const ort = require("onnxruntime-web"), { readSync, writeSync } = require("fs");
function read(bytes) {
  const buffer = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; ) {
    const count = readSync(0, buffer, at, bytes - at);
    if (count === 0) process.exit();
    at += count;
  }
  return buffer;
}
async function main() {
  ort.env.wasm.numThreads = Number(process.argv[2]);
  const session = await ort.InferenceSession.create(process.argv[1]);
  while (true) {
    const count = read(4).readUInt32LE();
    const pixels = new Float32Array(read(count * 784 * 4).buffer);
    const image = new ort.Tensor("float32", pixels, [count, 1, 28, 28]);
    const { logits } = await session.run({ image }, ["logits"]);
    writeSync(1, Buffer.from(logits.data.buffer, logits.data.byteOffset, logits.data.byteLength));
  }
}
main();
"""


def load_opencv(model: Path, threads: int) -> Predict:
    """OpenCV's module for networks."""
    import cv2  # pyright: ignore[reportMissingImports]

    cv2.setNumThreads(threads)
    network = cv2.dnn.readNetFromONNX(str(model))

    def predict(images: np.ndarray) -> np.ndarray:
        network.setInput(images, "image")
        return network.forward("logits")

    return predict


def load_ncnn(model: Path, threads: int) -> Predict:
    """Tencent's ncnn, in float32, from what its converter pnnx writes; one image at a time."""
    import ncnn  # pyright: ignore[reportMissingImports]
    import pnnx  # pyright: ignore[reportMissingImports]

    network = ncnn.Net()
    network.opt.num_threads = threads
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(network.opt, f"use_{option}", False)
    with TemporaryDirectory(prefix="lockstep-") as folder:
        shutil.copy(model, Path(folder) / "model.onnx")  # it writes ten files beside the model
        converter = Path(str(pnnx.__file__)).parent / "pnnx"
        _run(converter, "model.onnx", "inputshape=[1,1,28,28]", "fp16=0", folder=folder)
        network.load_param(f"{folder}/model.ncnn.param")
        network.load_model(f"{folder}/model.ncnn.bin")
    (image,), (logits, *_) = network.input_names(), network.output_names()

    def predict_one(pixels: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        extractor.input(image, ncnn.Mat(pixels).clone())  # it may be changed in place
        return np.array(extractor.extract(logits)[1]).ravel()

    return lambda images: np.stack([predict_one(pixels) for pixels in images])


def load_litert(model: Path, threads: int) -> Predict:
    """LiteRT, once TensorFlow Lite, from what onnx2tf writes; one image at a time."""
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    with TemporaryDirectory(prefix="lockstep-") as folder:
        _run("onnx2tf", "-i", model, "-o", folder, "-b", "1", "-n")
        content = next(Path(folder).glob("*_float32.tflite")).read_bytes()
    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    (image,) = interpreter.get_input_details()
    # Both outputs have ten numbers and no name that one could rely on; probabilities are at most 1.
    outputs = [each["index"] for each in interpreter.get_output_details()]

    def predict_one(pixels: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(image["index"], pixels.reshape(image["shape"]))
        interpreter.invoke()
        return max((interpreter.get_tensor(each)[0] for each in outputs), key=np.ptp)

    return lambda images: np.stack([predict_one(pixels) for pixels in images])


def load_tract(model: Path, threads: int) -> Predict:
    """Sonos's tract, on one thread."""
    import tract  # pyright: ignore[reportMissingImports]

    network = tract.onnx().load(str(model)).into_model().into_runnable()
    return lambda images: network.run([images])[0].to_numpy()


def load_iree(model: Path, threads: int) -> Predict:
    """IREE, compiled for this processor, on one thread."""
    from iree import compiler, runtime  # pyright: ignore[reportMissingImports]

    with TemporaryDirectory(prefix="lockstep-") as folder:
        path = f"{folder}/model.mlir"
        _run(sys.executable, "-m", "iree.compiler.tools.import_onnx", model, "-o", path)
        program = compiler.tools.compile_file(
            path,
            input_type="onnx",
            target_backends=["llvm-cpu"],
            extra_args=["--iree-llvmcpu-target-cpu=host"],
        )
    config = runtime.Config("local-sync")
    module = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, program), config)
    names = (name for name in module.vm_module.function_names if not name.startswith("__"))
    function = module[next(name for name in names if "$async" not in name)]
    return lambda images: function(images)[0].to_host()


def load_onnx2torch(model: Path, threads: int) -> Predict:
    """PyTorch again, from the file."""
    import onnx2torch  # pyright: ignore[reportMissingImports]
    import torch

    torch.set_num_threads(threads)
    network: Any = onnx2torch.convert(str(model)).eval()

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits, _ = network(torch.from_numpy(images))
            return logits.numpy()

    return predict


def load_tinygrad(model: Path, threads: int) -> Predict:
    """tinygrad on the processor, compiled for each batch size."""
    import tinygrad  # pyright: ignore[reportMissingImports]
    from tinygrad.nn.onnx import OnnxRunner  # pyright: ignore[reportMissingImports]

    compiled: dict[int, Any] = {}

    def predict(images: np.ndarray) -> np.ndarray:
        call = compiled.get(len(images))
        if call is None:
            network = OnnxRunner(str(model))  # it keeps the batch size of its first call
            call = tinygrad.TinyJit(lambda image: network({"image": image})["logits"].realize())
            compiled[len(images)] = call
        return call(tinygrad.Tensor(images.copy()).realize()).numpy()

    return predict


def load_reference(model: Path, threads: int) -> Predict:
    """The ReferenceEvaluator of the onnx package: NumPy, for checking and not for speed."""
    from onnx.reference import ReferenceEvaluator

    network = ReferenceEvaluator(str(model))
    return lambda images: np.asarray(network.run(["logits"], {"image": images})[0])  # pyright: ignore[reportArgumentType]


def load_web(model: Path, threads: int) -> Predict:
    """ONNX Runtime as WebAssembly in Node.js; images and logits go through a pipe."""
    node = subprocess.Popen(
        ["node", "-e", NODE_PROGRAM, str(model.resolve()), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert node.stdin and node.stdout
    questions, answers = node.stdin, node.stdout

    def predict(images: np.ndarray) -> np.ndarray:
        questions.write(np.uint32(len(images)).tobytes() + images.tobytes())
        questions.flush()
        logits = answers.read(len(images) * 10 * 4)
        return np.frombuffer(logits, np.float32).reshape(len(images), 10)

    return predict


def _run(*command: object, folder: str | None = None) -> None:
    """Run a converter, without what it prints.

    Raises:
        OSError: there is no such program, or it failed.
    """
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=quiet, capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()[-200:]}")


# For each runtime, the package whose version counts, the module to import, and the function that loads it.
RUNTIMES: dict[str, tuple[str, str, Callable[[Path, int], Predict]]] = {
    "OpenCV": ("opencv-python-headless", "cv2", load_opencv),
    "ncnn": ("ncnn", "pnnx", load_ncnn),
    "LiteRT": ("ai-edge-litert", "ai_edge_litert", load_litert),
    "tract": ("tract", "tract", load_tract),
    "IREE": ("iree-base-compiler", "iree", load_iree),
    "onnx2torch": ("onnx2torch", "onnx2torch", load_onnx2torch),
    "tinygrad": ("tinygrad", "tinygrad", load_tinygrad),
    "ReferenceEvaluator": ("onnx", "onnx", load_reference),
    "onnxruntime-web": ("", "onnx", load_web),
}
