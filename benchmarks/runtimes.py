"""Our files in runtimes that the project does not need: ``python -m benchmarks.runtimes --help``.

None of them is a dependency, and some cannot be installed together. ``pip install`` takes the names in
`RUNTIMES`; tinygrad also needs clang.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import Contender, Predict, load_openvino
from benchmarks.inference import InferenceOptions, list_contenders, load_run, make_rows, measure, show
from benchmarks.record import Row, add_rows, newest
from benchmarks.tables import make_table
from recipe import console
from recipe.console import run_command

IMAGES = 1_000  # some of the runtimes take 50 ms for an image


def load_opencv(contender: Contender, _: int) -> Predict:
    """OpenCV's module for networks."""
    import cv2  # pyright: ignore[reportMissingImports]

    cv2.setNumThreads(1)
    network = cv2.dnn.readNetFromONNX(str(contender.model))

    def predict(images: np.ndarray) -> np.ndarray:
        network.setInput(images, "image")
        return network.forward("logits")

    return predict


def load_ncnn(contender: Contender, _: int) -> Predict:
    """Tencent's ncnn, in float32, from what its converter pnnx writes; one image at a time."""
    import ncnn  # pyright: ignore[reportMissingImports]
    import pnnx  # pyright: ignore[reportMissingImports]

    network = ncnn.Net()
    network.opt.num_threads = 1
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(network.opt, f"use_{option}", False)
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        shutil.copy(contender.model, Path(folder) / "model.onnx")  # it writes ten files beside the model
        converter = Path(str(pnnx.__file__)).parent / "pnnx"
        command = [converter, "model.onnx", "inputshape=[1,1,28,28]", "fp16=0"]
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
        network.load_param(f"{folder}/model.ncnn.param")
        network.load_model(f"{folder}/model.ncnn.bin")
    (image,), (logits, *_others) = network.input_names(), network.output_names()

    def predict_one(pixels: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        extractor.input(image, ncnn.Mat(pixels).clone())  # it may be changed in place
        return np.array(extractor.extract(logits)[1]).ravel()

    return lambda images: np.stack([predict_one(pixels) for pixels in images])


def load_tract(contender: Contender, _: int) -> Predict:
    """Sonos's tract."""
    import tract  # pyright: ignore[reportMissingImports]

    network = tract.onnx().load(str(contender.model)).into_model().into_runnable()
    return lambda images: network.run([images])[0].to_numpy()


def load_iree(contender: Contender, _: int) -> Predict:
    """IREE, compiled for this processor."""
    from iree import compiler, runtime  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        path = f"{folder}/model.mlir"
        command = [sys.executable, "-m", "iree.compiler.tools.import_onnx", contender.model, "-o", path]
        subprocess.run(command, capture_output=True, check=True)
        options = {"target_backends": ["llvm-cpu"], "extra_args": ["--iree-llvmcpu-target-cpu=host"]}
        program = compiler.tools.compile_file(path, input_type="onnx", **options)
    config = runtime.Config("local-sync")
    module = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, program), config)
    names = (name for name in module.vm_module.function_names if not name.startswith("__"))
    function = module[next(name for name in names if "$async" not in name)]
    return lambda images: function(images)[0].to_host()


def load_onnx2torch(contender: Contender, _: int) -> Predict:
    """PyTorch again, from the file."""
    import onnx2torch  # pyright: ignore[reportMissingImports]
    import torch

    torch.set_num_threads(1)
    network: Any = torch.inference_mode()(onnx2torch.convert(str(contender.model)).eval())
    return lambda images: network(torch.from_numpy(images))[0].numpy()


def load_tinygrad(contender: Contender, _: int) -> Predict:
    """tinygrad on the processor, compiled for each batch size."""
    import tinygrad  # pyright: ignore[reportMissingImports]
    from tinygrad.nn.onnx import OnnxRunner  # pyright: ignore[reportMissingImports]

    compiled: dict[int, Any] = {}

    def predict(images: np.ndarray) -> np.ndarray:
        if len(images) not in compiled:
            network = OnnxRunner(str(contender.model))  # it keeps the batch size of its first call
            compiled[len(images)] = tinygrad.TinyJit(
                lambda image: network({"image": image})["logits"].realize()
            )
        return compiled[len(images)](tinygrad.Tensor(images.copy()).realize()).numpy()

    return predict


def load_reference(contender: Contender, _: int) -> Predict:
    """The ReferenceEvaluator of the onnx package: NumPy, for checking and not for speed."""
    from onnx.reference import ReferenceEvaluator

    network = ReferenceEvaluator(str(contender.model))
    return lambda images: np.asarray(network.run(["logits"], {"image": images})[0])  # pyright: ignore[reportArgumentType]


# For each runtime, the package whose version counts, the module to import, and the function that loads it.
RUNTIMES: dict[str, tuple[str, str, Callable[[Contender, int], Predict]]] = {
    "openvino-f32": ("openvino", "openvino", load_openvino),
    "OpenCV": ("opencv-python-headless", "cv2", load_opencv),
    "ncnn": ("ncnn", "pnnx", load_ncnn),
    "tract": ("tract", "tract", load_tract),
    "IREE": ("iree-base-compiler", "iree", load_iree),
    "onnx2torch": ("onnx2torch", "onnx2torch", load_onnx2torch),
    "tinygrad": ("tinygrad", "tinygrad", load_tinygrad),
    "ReferenceEvaluator": ("onnx", "onnx", load_reference),
}


def main(options: InferenceOptions) -> None:
    """Time every runtime that is installed on one image at a time, with the float32 and the int8 file.

    Raises:
        UserError: a faulty file or data folder.
    """
    checkpoint, run, images = load_run(options.model, options.checkpoint, options.data_dir)
    options.check_record("runtimes", images.name)
    labels = None if images.labels is None else images.labels[:IMAGES]
    images = replace(images, test=images.test[:IMAGES], labels=labels)
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        files = list_contenders(["onnxruntime int8"], options.model, checkpoint, images, Path(folder))
        contenders = files + [
            replace(file, label=file.label.replace("onnxruntime", name), load=load)
            for name, (_, module, load) in RUNTIMES.items()
            if importlib.util.find_spec(module)
            for file in files
        ]
        measured = measure(contenders, images.test, [1], options.rounds, options.seconds)
        rows = make_rows(measured, run.network, images)
    show(options.model, rows)
    packages = {"onnxruntime", "torch", "numpy", *(package for package, _, _ in RUNTIMES.values())}
    console.show_line(f"-> {add_rows('runtimes', rows, sorted(packages), options.publish)}")


def runtimes_table() -> str:
    """Each runtime on one image at a time, and the accuracy of the int8 file in it."""
    known = {(row["network"], row["engine"]): row for row in newest("runtimes", "network", "engine", batch=1)}
    rows: list[Row] = []
    for (network, engine), row in known.items():
        if engine in RUNTIMES:
            int8 = known.get((network, f"{engine} int8"))
            name = f"{engine} {row['versions'].get(RUNTIMES[engine][0], '')}".strip()
            accuracy = "no" if int8 is None else f"{int8['accuracy']:.2%}"
            rows.append(row | {"name": name, "int8": accuracy, "rows": [row, *([int8] if int8 else [])]})
    return make_table(
        "network | runtime | largest difference | batch 1, us (ratio) | accuracy of int8",
        "`{network}` | {name} | {largest_difference:.1e} | {p50_us:,.0f} ({ratio:.2f}) | {int8}",
        sorted(rows, key=lambda row: row["network"]),
        "benchmarks.runtimes --model models/NETWORK-torch/model.onnx",
    )


if __name__ == "__main__":
    run_command(InferenceOptions, main, "python -m benchmarks.runtimes")
