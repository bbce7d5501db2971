"""Time an exported file in ONNX Runtime against the frameworks: ``python -m benchmarks.inference --help``."""

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import onnx
from onnx import TensorProto, helper
from rich.console import Console

from benchmarks.inference_engines import ENGINES
from benchmarks.inference_report import draw, latency_tables, notes, start_table, tabulate
from benchmarks.inference_runs import Contender, Settings, measure
from benchmarks.machine import describe_machine
from export.build import INPUT
from export.fold import Convolution, multiplications, steps_of
from export.images import Images, load_images
from export.metadata import get_metadata, weights_sha256
from export.verify import read_model
from recipe import report
from recipe.checkpoint import FILE_NAME, Checkpoint, load_checkpoint
from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.networks import IMAGE_SHAPE
from recipe.options import check_choice, choice, run_command

QUICK = Settings(batches=(1, 64), threads=(1,), rounds=1, seconds=0.3, warm_seconds=0.6)


@dataclass(frozen=True)
class InferenceOptions:
    """Time ONNX Runtime, PyTorch, JAX and OpenVINO on the same weights and images, side by side."""

    model: Path
    """ONNX file written by python -m export."""
    checkpoint: Path | None = None
    """The run it was exported from [looked for beside the model and in runs/, by the weights' SHA-256]."""
    also: tuple[Path, ...] = ()
    """More ONNX files of the same run to time in ONNX Runtime: an int8 one, another export."""
    engines: tuple[str, ...] = tuple(ENGINES)
    """What to compare; one that is not installed is left out."""
    batches: tuple[int, ...] = (1, 8, 64, 256, 1024)
    """Images per call."""
    threads: tuple[int, ...] = ()
    """Numbers of threads [1 and all]."""
    device: Annotated[str, choice("auto", "cpu", "cuda")] = "auto"
    """auto: the CPU, and the GPU where there is one."""
    rounds: int = 5
    """Processes for each engine and number of threads, in alternating order."""
    seconds: float = 2.0
    """Of timing for each batch size in each process."""
    spinning: bool = True
    """ONNX Runtime's threads wait in a loop, as is its default; --no-spinning leaves the cores to others."""
    quick: bool = False
    """A trial of a minute: batches 1 and 64, one thread, one round; writes no file unless --out is given."""
    data_dir: Path | None = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    out: Path | None = None
    """Result file [results/inference-NETWORK.json]; the picture goes beside it."""

    def settings(self) -> Settings:
        """What to measure.

        Raises:
            UserError: naming the first faulty option.
        """
        cores = available_cores()
        check_choice("--device", self.device, "auto", "cpu", "cuda")
        for engine in self.engines:
            check_choice("--engines", engine, *ENGINES)
        if "onnxruntime" not in self.engines:
            raise UserError("--engines lacks onnxruntime, which the others are compared with")
        threads = self.threads or ((1, cores) if cores > 1 else (1,))
        for option, numbers, most in (("--batches", self.batches, 65_536), ("--threads", threads, cores)):
            if not numbers or not all(1 <= number <= most for number in numbers):
                raise UserError(f"{option} must be numbers from 1 to {most}")
        if not 1 <= self.rounds <= 1000:
            raise UserError(f"--rounds {self.rounds} is out of range; give 1 to 1000")
        if not 0 < self.seconds <= 3600:
            raise UserError(f"--seconds {self.seconds} is out of range; give up to 3600")
        if self.quick:
            return QUICK
        return Settings(
            batches=tuple(sorted(set(self.batches))),
            threads=tuple(sorted(set(threads))),
            rounds=self.rounds,
            seconds=self.seconds,
            warm_seconds=2 * self.seconds,
        )


def available_cores() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def find_checkpoint(given: Path | None, model: Path, metadata: dict[str, str]) -> Path:
    """The checkpoint with a model's very weights.

    Raises:
        UserError: the given one has other weights, or there is none to be found.
    """
    wanted = metadata.get("weights_sha256")
    if wanted is None:
        raise UserError(f"{model} does not say which weights it has; write it with python -m export")
    if given is not None:
        if weights_sha256(load_checkpoint(given).model) != wanted:
            raise UserError(
                f"{given} has other weights than {model}; give the checkpoint it was exported from"
            )
        return given
    for candidate in [
        *sorted(model.parent.glob("*.safetensors")),
        *sorted(Path("runs").glob(f"*/{FILE_NAME}")),
    ]:
        try:
            if weights_sha256(load_checkpoint(candidate).model) == wanted:
                return candidate
        except UserError:
            continue  # a damaged file among many is not what this command is about
    raise UserError(
        f"no checkpoint with the weights of {model} beside it or in runs/; give --checkpoint the run it is of"
    )


def list_contenders(options: InferenceOptions, checkpoint: Path) -> list[Contender]:
    """ONNX Runtime first, then the other files, then the other engines, on each device.

    Raises:
        UserError: one of --also is faulty or of other weights, or there is no CUDA device.
    """
    spinning = {"spinning": options.spinning}
    first = Contender("onnxruntime", "onnxruntime", options.model, checkpoint, options=spinning)
    contenders = [first]
    wanted = get_metadata(read_model(options.model)[1])["weights_sha256"]
    for path in options.also:
        if get_metadata(read_model(path)[1]).get("weights_sha256") != wanted:
            raise UserError(
                f"{path} has other weights than {options.model}; export it from the same checkpoint"
            )
        contenders.append(replace(first, label=f"onnxruntime {path.stem}", model=path))
    for name in options.engines:
        if name == "openvino":
            for precision in ("f32", "bf16"):
                contender = Contender(f"openvino {precision}", name, options.model, checkpoint)
                contenders.append(replace(contender, options={"precision": precision}))
        elif name != "onnxruntime":
            contenders.append(Contender(name, name, options.model, checkpoint))
    missing = {name for name in options.engines if not _installed(name)}
    for name in sorted(missing):
        report.show_notice(f"{name} is not installed and left out")
    contenders = [each for each in contenders if each.engine not in missing]
    return [*_on_cpu(options, contenders), *_on_cuda(options, contenders)]


def _installed(engine: str) -> bool:
    return importlib.util.find_spec(ENGINES[engine].modules[0]) is not None


def _on_cpu(options: InferenceOptions, contenders: list[Contender]) -> list[Contender]:
    return [] if options.device == "cuda" else contenders


def _on_cuda(options: InferenceOptions, contenders: list[Contender]) -> list[Contender]:
    import onnxruntime
    import torch

    if options.device == "cpu" or not torch.cuda.is_available():
        if options.device == "cuda":
            raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu or auto")
        return []
    on_cuda = [
        replace(each, label=f"{each.label} cuda", device="cuda")
        for each in contenders
        if "cuda" in ENGINES[each.engine].devices
    ]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return on_cuda
    if options.device == "cuda":
        raise UserError("--device cuda: this onnxruntime has no CUDA; pip install onnxruntime-gpu")
    report.show_notice("this onnxruntime has no CUDA: on the GPU there are only the frameworks")
    return [each for each in on_cuda if each.engine != "onnxruntime"]


def write_empty_graph(path: Path) -> None:
    """A model that gives back its image: what a call costs in which nothing is computed."""
    shape = ["batch", *IMAGE_SHAPE]
    node = helper.make_node("Identity", [INPUT], ["same"])
    image, same = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (INPUT, "same"))
    graph = helper.make_graph([node], "empty", [image], [same])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def flops_per_image(checkpoint: Checkpoint) -> int:
    """Floating-point operations of the convolutions as they were trained: two for each multiplication."""
    steps = steps_of(checkpoint.network, checkpoint.model)
    return 2 * sum(multiplications(step) for step in steps if isinstance(step, Convolution))


def run(
    contenders: Sequence[Contender], checkpoint: Checkpoint, images: Images, settings: Settings
) -> dict[str, Any]:
    """Measure the contenders, the empty graph and the matrix product, and tabulate."""
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        empty = Path(folder) / "empty.onnx"
        write_empty_graph(empty)
        first = contenders[0]
        floor = replace(first, label="empty graph", model=empty)
        measurements, limits = measure([*contenders, floor], images.test, settings)
    *measurements, floor = measurements
    return tabulate(measurements, limits, floor, images, flops_per_image(checkpoint))


def describe_run(model: Path, content: bytes, settings: Settings, images: Images) -> dict[str, Any]:
    """Where, when, on what and how: the head of a result file."""
    machine = describe_machine()
    with suppress(PackageNotFoundError):
        machine["versions"]["openvino"] = version("openvino")
    return {
        "machine": machine,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "file": model.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "metadata": get_metadata(onnx.load_model_from_string(content)),
        },
        "images": f"{len(images.test)} {images.name}",
        "settings": asdict(settings),
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables and what they mean."""
    machine, model, settings = result["machine"], result["model"], result["settings"]
    console = Console(
        file=report.console.file, width=None if report.console.is_terminal else 130
    )  # a file has no width to keep to
    for table in (start_table(result), *latency_tables(result)):
        console.print(table)
    pinned = "pinned to as many processors as threads" if result["pinned"] else "not pinned"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    for line in (
        *notes(result),
        f"{settings['rounds']} processes each in alternating order, {settings['seconds']} s for each batch "
        f"size after warm-up to stability; {pinned}; ONNX Runtime's threads "
        f"{'spin' if result['spinning'] else 'do not spin'} between calls",
        f"{machine['processor']}, {machine['cores']} cores, GPU {machine['gpu']}; {versions}",
        f"{model['file']}, SHA-256 {model['sha256']}",
    ):
        report.show_line(line)


def save(result: dict[str, Any], out: Path) -> None:
    """Write the JSON and the picture beside it."""
    network = result["model"]["metadata"].get("network")
    title = f"{network}: {result['machine']['processor']}, file {result['model']['sha256'][:12]}"
    write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(out.with_suffix(".png"), draw(result, title))
    report.show_line(f"written: {out}, {out.with_suffix('.png')}")


def main(options: InferenceOptions) -> None:
    """Compare the engines as the command line says.

    Raises:
        UserError: a faulty option, file or data folder, or ONNX Runtime does not run here.
    """
    settings = options.settings()
    content, model = read_model(options.model)
    metadata = get_metadata(model)
    path = find_checkpoint(options.checkpoint, options.model, metadata)
    checkpoint = load_checkpoint(path)
    contenders = list_contenders(options, path)
    images = load_images(checkpoint, options.data_dir)
    if images.note:
        report.show_notice(images.note)
    result = describe_run(options.model, content, settings, images)
    result["spinning"] = options.spinning
    result |= run(contenders, checkpoint, images, settings)
    show(result)
    out = options.out or (  # named after the checkpoint: the file's own word for it could be any path
        None if options.quick else Path("results") / f"inference-{checkpoint.network.name}.json"
    )
    if out is not None:
        save(result, out)


if __name__ == "__main__":
    run_command(InferenceOptions, main, "python -m benchmarks.inference")
