"""Time an exported file against the frameworks: ``python -m benchmarks.inference --help``."""

import importlib.util
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from benchmarks.inference.engines import ENGINES, Contender, export_with_torch
from benchmarks.inference.measure import Settings, make_rows, measure
from benchmarks.inference.runtimes import RUNTIMES
from benchmarks.workers import Columns, Worker, environment, show_table
from export.images import load_images
from export.metadata import get_metadata, weights_sha256
from export.structure import read_model
from recipe import report
from recipe.checkpoint import FILE_NAME, find_checkpoint, load_checkpoint
from recipe.cli import check_range, optional, run_command
from recipe.errors import UserError
from recipe.record import PublishOptions, Row, add_rows, count_cores

PACKAGES = ("onnxruntime", "onnx", "torch", "onnxscript", "jax", "flax", "openvino", "numpy")
RUNTIME_IMAGES = 1_000  # some of the other runtimes take 50 ms for an image
TORCH_EXPORT = "torch.onnx.export"

EngineName = Literal[
    "onnxruntime",
    "torch.onnx.export",
    "torch-eager",
    "torch-compile",
    "jax-jit",
    "openvino-f32",
    "openvino-bf16",
]


@dataclass(frozen=True)
class InferenceOptions(PublishOptions):
    """Time ONNX Runtime, PyTorch, JAX and OpenVINO with the same weights."""

    model: Annotated[Path | None, optional("FILE", "the newest here and in runs/, or one of models/")] = None
    """ONNX file written by python -m export."""
    checkpoint: Annotated[Path | None, optional("RUN", "searched beside the model and in runs/")] = None
    """The run that was exported: its folder or its checkpoint."""
    also: Annotated[tuple[Path, ...], optional("FILE ...")] = ()
    """Other ONNX files of the same run to time in ONNX Runtime, such as an int8 one."""
    engines: tuple[EngineName, ...] = get_args(EngineName)
    """What to time; engines that are not installed are left out."""
    runtimes: bool = False
    """Time other runtimes that are installed instead, on all the files; goes to runtimes.jsonl."""
    batches: tuple[int, ...] = (1, 64, 1024)
    """Images in one call."""
    threads: tuple[int, ...] = (1,)
    """Numbers of threads."""
    rounds: int = 3
    """Processes of each engine and number of threads."""
    seconds: float = 1.0
    """Time to measure each batch size in each process."""
    spinning: bool = True
    """ONNX Runtime's idle threads wait in a loop (its default); --no-spinning frees the cores."""
    data_dir: Annotated[Path | None, optional("DIR")] = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""

    def settings(self) -> Settings:
        """What to measure.

        Raises:
            UserError: naming the first faulty option.
        """
        for batch in self.batches:
            check_range("--batches", batch, 1, 65_536)
        for threads in self.threads:
            check_range("--threads", threads, 1, count_cores())
        check_range("--rounds", self.rounds, 1, 1000)
        if not 0 < self.seconds <= 3600:
            raise UserError(f"--seconds {self.seconds} is out of range; give more than 0 and up to 3600")
        if "onnxruntime" not in self.engines or not self.batches or not self.threads:
            raise UserError("--engines needs onnxruntime, --batches and --threads need at least one number")
        return Settings(tuple(sorted(set(self.batches))), self.threads, self.rounds, self.seconds)


def find_model() -> Path:
    """The newest ONNX file here and in the folders of ``runs/``, or else the first in ``models/``.

    Raises:
        UserError: there is none.
    """
    files = [path for pattern in ("*.onnx", "runs/*.onnx", "runs/*/*.onnx") for path in Path().glob(pattern)]
    published = sorted(Path("models").glob("*/model.onnx"))
    if not files and not published:
        raise UserError("there is no ONNX file here, in runs/ or in models/; write one with python -m export")
    return max(files, key=lambda path: path.stat().st_mtime) if files else published[0]


def find_run(run: Path | None, model: Path, weights: str | None) -> Path:
    """The checkpoint with the weights of a model.

    Args:
        run: folder or checkpoint, or None to search for it.
        model: the ONNX file.
        weights: SHA-256 of its weights, from its metadata.

    Raises:
        UserError: the run has other weights, or none can be found.
    """
    if weights is None:
        raise UserError(f"{model} does not say which weights it has; write it with python -m export")
    if run is not None:
        path = find_checkpoint(run)
        if weights_sha256(load_checkpoint(path).model) != weights:
            raise UserError(f"{path} has other weights than {model}; give the run that it was exported from")
        return path
    for path in [*sorted(model.parent.glob("*.safetensors")), *sorted(Path("runs").glob(f"*/{FILE_NAME}"))]:
        try:
            if weights_sha256(load_checkpoint(path).model) == weights:
                return path
        except UserError:
            continue  # this command is not about a damaged file among many
    raise UserError(f"no run beside {model} or in runs/ has its weights; give --checkpoint")


def list_contenders(
    options: InferenceOptions, model: Path, checkpoint: Path, folder: Path
) -> list[Contender]:
    """ONNX Runtime first, then its other files, then the other engines.

    Args:
        options: of the command line.
        model: the ONNX file.
        checkpoint: with its weights.
        folder: for the file that PyTorch exports.

    Raises:
        UserError: one of --also is faulty or has other weights.
    """
    first = Contender("onnxruntime", "onnxruntime", model, checkpoint, options.spinning)
    contenders = [first]
    weights = get_metadata(read_model(model)[1])["weights_sha256"]
    for path in options.also:
        metadata = get_metadata(read_model(path)[1])
        if metadata.get("weights_sha256") != weights:
            raise UserError(f"{path} has other weights than {model}; export it from the same run")
        contenders.append(replace(first, label=f"onnxruntime {metadata['precision']}", model=path))
    for engine in ("openvino-f32", *RUNTIMES) if options.runtimes else dict.fromkeys(options.engines):
        if engine == TORCH_EXPORT:
            out = folder / f"{model.stem}-torch.onnx"
            with Worker(engine, export_with_torch, checkpoint, out, environment=environment("cpu")):
                contenders.append(replace(first, label=engine, model=out))
        elif engine != "onnxruntime":
            if importlib.util.find_spec(ENGINES[engine][0][0]):
                files = [each for each in contenders if each.engine == "onnxruntime"]
                for file in files if options.runtimes else [first]:
                    label = file.label.replace("onnxruntime", engine)
                    contenders.append(replace(file, label=label, engine=engine))
            else:
                report.show_notice(f"{engine} is not installed and left out")
    return contenders


def main(options: InferenceOptions) -> None:
    """Measure, print, and record what the options say.

    Raises:
        UserError: a faulty option, file or data folder, or ONNX Runtime does not work here.
    """
    settings = options.settings()
    model = options.model or find_model()
    checkpoint = find_run(options.checkpoint, model, get_metadata(read_model(model)[1]).get("weights_sha256"))
    run = load_checkpoint(checkpoint)
    images = load_images(run, options.data_dir)
    options.check_publishable(images.name)
    if options.runtimes:
        labels = None if images.labels is None else images.labels[:RUNTIME_IMAGES]
        images = replace(images, test=images.test[:RUNTIME_IMAGES], labels=labels)
    if images.note:
        report.show_notice(images.note)
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        contenders = list_contenders(options, model, checkpoint, Path(folder))
        rows = make_rows(*measure(contenders, images.test, settings), run.network, images)
    show(model, settings, rows)
    name = "runtimes" if options.runtimes else "inference"
    packages = {*PACKAGES, *(package for package, _, _ in RUNTIMES.values())} - {""}
    report.show_line(f"-> {add_rows(name, rows, sorted(packages), options.publish)}")


def show(model: Path, settings: Settings, rows: list[Row]) -> None:
    """Print two tables, and what a person needs to read them."""
    first_cells = {row["engine"]: row for row in reversed(rows)}
    show_table(f"{model.name}: start, memory, classes", STARTS, list(reversed(first_cells.values())))
    for threads in settings.threads:
        cells = sorted((row for row in rows if row["threads"] == threads), key=lambda row: row["batch"])
        show_table(f"{model.name}: latency, {report.count(threads, 'thread')}", LATENCIES, cells)
        limit = cells[0]["limit_us"] / cells[0]["batch"]
        report.show_line(f"limit: {limit:.2f} us an image, its convolutions as fast as a matrix product")
    if not all(row["settled"] for row in rows):
        report.show_line("* still changing after a long warm-up: measure it again when the machine is quiet")


STARTS: Columns = {
    "": lambda row: row["engine"],
    "bytes": lambda row: f"{row['bytes']:,}",
    "import ms": lambda row: f"{row['import_ms']:,.0f}",
    "first ms": lambda row: f"{row['load_ms'] + row['first_run_ms']:,.0f}",
    "peak MiB": lambda row: f"{row['peak_mib']:,.0f}",
    "right": lambda row: "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}",
    "other class": lambda row: f"{row['images'] - row['same_class']:,}",
}
LATENCIES: Columns = {
    "": lambda row: row["engine"],
    "batch": lambda row: f"{row['batch']:,}",
    "P50 us": lambda row: f"{row['p50_us']:,.0f}" + ("" if row["settled"] else "*"),
    "P90": lambda row: f"{row['p90_us']:,.0f}",
    "P99": lambda row: f"{row['p99_us']:,.0f}",
    "images/s": lambda row: f"{row['images_per_second']:,.0f}",
    "ratio": lambda row: f"{row['ratio']:.2f}",
}


if __name__ == "__main__":
    run_command(InferenceOptions, main, "python -m benchmarks.inference")
