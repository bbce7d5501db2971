"""Time an exported file beside the frameworks: ``python -m benchmarks.inference --help``."""

import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from benchmarks import workers
from benchmarks.engines import ENGINES, TORCH_EXPORT, Contender, Engine, export_with_torch
from benchmarks.progress import show_progress
from benchmarks.record import PublishOptions, Row, add_rows, grouped, newest
from benchmarks.tables import make_table, show_table
from benchmarks.workers import Worker, round_figures
from export.images import Images, load_images
from export.metadata import get_metadata, weights_sha256
from export.quantize import quantize
from export.structure import read_model
from recipe import console
from recipe.checkpoint import FILE_NAME, Checkpoint, find_checkpoint, load_checkpoint
from recipe.console import UserError, check_range, option, run_command
from recipe.networks import Network
from recipe.provenance import count_cores

PACKAGES = ("onnxruntime", "onnx", "torch", "onnxscript", "jax", "flax", "openvino", "numpy")
SHIPPED = Path(__file__).parent.parent / "models" / "net9954-torch" / "model.onnx"


@dataclass(frozen=True)
class InferenceOptions(PublishOptions):
    """Time ONNX Runtime, PyTorch, JAX and OpenVINO with the same weights."""

    model: Path = option(
        SHIPPED, "Written by python -m export (default: models/net9954-torch/model.onnx)", metavar="FILE"
    )
    checkpoint: Path | None = option(
        None,
        "The run that was exported (default: searched beside the model and in runs/)",
        metavar="RUN",
    )
    engines: Sequence[str] = option(
        tuple(ENGINES),
        "What to time beside ONNX Runtime (default: all that are installed)",
        type=str,
        choices=tuple(ENGINES),
        nargs="+",
    )
    batches: Sequence[int] = option(
        (1, 64, 1024), "Images in one call (default: 1 64 1024)", type=int, nargs="+"
    )
    threads: int = option(1, "Number of threads (default: 1)")
    rounds: int = option(3, "Processes of each engine (default: 3)")
    seconds: float = option(1.0, "Time to measure each batch size in each process (default: 1)")
    data_dir: Path | None = option(
        None, "Folder with the four original MNIST files (or set MNIST_DIR)", metavar="DIR"
    )


@dataclass
class Measurement:
    """The figures of one contender; lists have one entry for each process."""

    contender: Contender
    latencies: dict[int, list[np.ndarray]] = field(default_factory=dict)  # nanoseconds, by batch size
    settled: dict[int, bool] = field(default_factory=dict)  # in every process
    logits: np.ndarray | None = None  # float32 (N, 10), of all images
    failed: bool = False


def load_run(model: Path, run: Path | None, data_dir: Path | None) -> tuple[Path, Checkpoint, Images]:
    """The checkpoint with the weights of a model, its path, and the images to classify.

    Args:
        model: the ONNX file.
        run: folder or checkpoint; None to search for it.
        data_dir: folder with MNIST.

    Raises:
        UserError: the run has other weights, none can be found, or a faulty file or data folder.
    """
    weights = get_metadata(read_model(model)[1]).get("weights_sha256")
    if weights is None:
        raise UserError(f"{model} does not say which weights it has; write it with python -m export")
    nearby = [*model.parent.glob("*.safetensors"), *Path("runs").glob(f"*/{FILE_NAME}")]
    for path in [find_checkpoint(run)] if run else sorted(nearby):
        try:
            checkpoint = load_checkpoint(path)
        except UserError:
            if run:
                raise
            continue  # a damaged file among many
        if weights_sha256(checkpoint.model) == weights:
            return path, checkpoint, load_images(checkpoint, data_dir)
    where = (
        f"{run} has other weights than {model}"
        if run
        else f"no run beside {model} or in runs/ has its weights"
    )
    raise UserError(f"{where}; give the run that it was exported from with --checkpoint")


def list_contenders(
    engines: Sequence[str], model: Path, checkpoint: Path, images: Images, folder: Path
) -> list[Contender]:
    """What to time, ONNX Runtime first; a folder takes the files that are made from the model."""
    contenders = []
    for engine in dict.fromkeys(("onnxruntime", *engines)):
        module, load = ENGINES[engine]
        file = model
        if not importlib.util.find_spec(module):
            console.show_notice(f"{engine} is not installed and left out")
            continue
        if engine == TORCH_EXPORT:
            file = folder / f"{model.stem}-torch.onnx"
            with Worker(engine, export_with_torch, checkpoint, file, environment=workers.environment("cpu")):
                pass
        if engine == "onnxruntime int8":
            if images.train is None:
                console.show_notice("int8 is left out: it is calibrated on training images")
                continue
            file = folder / f"{model.stem}-int8.onnx"
            onnx.save(quantize(onnx.load(model), images.train), file)
        contenders.append(Contender(engine, load, file, checkpoint))
    return contenders


def measure(
    contenders: Sequence[Contender],
    images: np.ndarray,
    batches: Sequence[int],
    rounds: int,
    seconds: float,
    threads: int = 1,
) -> list[Measurement]:
    """Time all contenders, every other round in reverse order, each time in a fresh process.

    Args:
        contenders: the first must work; another that fails is left out of further rounds.
        images: float32 (N, 1, 28, 28) in 0..1; all of them are classified, the first of each batch are timed.
        batches: images in a call.
        rounds: processes of each.
        seconds: to time each batch size in each process.
        threads: and processors of each process.

    Raises:
        UserError: the first contender fails.
    """
    measurements = [Measurement(contender) for contender in contenders]
    with (
        tempfile.TemporaryDirectory(prefix="lockstep-") as caches,
        show_progress(rounds * len(contenders)) as advance,
    ):
        environment = workers.environment("cpu", threads)
        environment |= {"TORCHINDUCTOR_CACHE_DIR": caches, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        for turn in range(rounds):
            for each in measurements if turn % 2 == 0 else reversed(measurements):
                contender = each.contender
                label, arguments = contender.label, (contender, threads, images)
                try:
                    if not each.failed:
                        with Worker(
                            label, Engine, *arguments, environment=environment, cores=threads
                        ) as worker:
                            time_process(each, worker, batches, seconds)
                except UserError as error:
                    if each is measurements[0]:
                        raise
                    each.failed = True
                    console.show_notice(f"{error}; left out")
                advance(f"{label}, round {turn + 1}")
    return measurements


def time_process(measurement: Measurement, engine: Worker, batches: Sequence[int], seconds: float) -> None:
    """Add the figures of one process to a measurement."""
    for batch in batches:
        latencies, settled = engine.call("time_batch", batch, seconds)
        measurement.latencies.setdefault(batch, []).append(latencies)
        measurement.settled[batch] = settled and measurement.settled.get(batch, True)
    if measurement.logits is None:
        measurement.logits = engine.call("logits", batches[-1])


def make_rows(
    measurements: Sequence[Measurement], network: Network, images: Images, threads: int = 1
) -> list[Row]:
    """One row for each contender and batch size; times in microseconds.

    Ratios are to the first contender, round by round, so that what slows the machine for a while slows both.
    """
    first = measurements[0]
    assert first.logits is not None
    rows = []
    for each in measurements:
        if each.logits is None:  # it failed in its first process
            continue
        content = each.contender.model.read_bytes()
        about = {
            "network": network.name,
            "engine": each.contender.label,
            "file": each.contender.model.name,
            "bytes": len(content),
            "nodes": len(onnx.load_model_from_string(content).graph.node),
            "accuracy": images.accuracy(each.logits),
            "largest_difference": float(np.abs(each.logits - first.logits).max()),
            "same_class": int((each.logits.argmax(1) == first.logits.argmax(1)).sum()),
            "images": len(each.logits),
            "threads": threads,
        }
        for batch, rounds in each.latencies.items():
            calls = np.concatenate(rounds)
            ours = np.array([np.median(latencies) for latencies in rounds])
            theirs = np.array([np.median(latencies) for latencies in first.latencies[batch]])
            p50, p90, p99 = (float(value) for value in np.percentile(calls, (50, 90, 99)) / 1e3)
            figures = {
                "batch": batch,
                "calls": len(calls),
                **{"p50_us": p50, "p90_us": p90, "p99_us": p99},
                "ratio": float(np.median(ours / theirs[: len(ours)])),
                "settled": each.settled[batch],
            }
            rows.append(round_figures(about | figures))
    return rows


def main(options: InferenceOptions) -> None:
    """Measure, print, and record what the options say.

    Raises:
        UserError: a faulty option, file or data folder, or ONNX Runtime does not work here.
    """
    batches = sorted(set(options.batches))
    for batch in batches:
        check_range("--batches", batch, 1, 65_536)
    check_range("--threads", options.threads, 1, count_cores())
    check_range("--rounds", options.rounds, 1, 1000)
    if not 0 < options.seconds <= 3600 or not batches:
        raise UserError("--seconds needs more than 0 and up to 3600, --batches at least one number")
    checkpoint, run, images = load_run(options.model, options.checkpoint, options.data_dir)
    options.check_record("inference", images.name)
    if images.note:
        console.show_notice(images.note)
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        contenders = list_contenders(options.engines, options.model, checkpoint, images, Path(folder))
        how = (batches, options.rounds, options.seconds, options.threads)
        measured = measure(contenders, images.test, *how)
        rows = make_rows(measured, run.network, images, options.threads)
    show(options.model, rows)
    console.show_line(f"-> {add_rows('inference', rows, PACKAGES, options.publish)}")


def show(model: Path, rows: list[Row]) -> None:
    """Print the rows, and what a person needs to read them."""
    show_table(
        f"{model.name}, {console.count(rows[0]['threads'], 'thread')}",
        " | batch | P50 us | P90 | P99 | ratio | accuracy | same class",
        "{engine} | {batch:,} | {p50_us:,.0f}{star} | {p90_us:,.0f} | {p99_us:,.0f} | {ratio:.2f} "
        "| {accuracy:.2%} | {same_class:,}",
        sorted(map(mark, rows), key=lambda row: row["batch"]),
    )
    if not all(row["settled"] for row in rows):
        console.show_line("* still changing after a long warm-up: measure it again when the machine is quiet")


def mark(row: Row) -> Row:
    """The row with a star if its latency was still changing."""
    return row | {"star": "" if row["settled"] else "*"}


# ----------------------------------------------------------------------------------------- the page's tables

AGAIN = "benchmarks.inference --model models/{}-torch/model.onnx"


def latencies_table() -> str:
    """Each file in each engine on one thread: median microseconds by batch."""
    rows = []
    for group in grouped(newest("inference", "network", "engine", "batch", threads=1), "network", "engine"):
        cells = {
            f"batch_{row['batch']}": r"{p50_us:,.0f}{star} ({ratio:.2f})".format(**mark(row)).replace(
                "*", r"\*"
            )
            for row in group
        }
        rows.append(group[0] | cells | {"rows": group})
    return make_table(
        "network | runtime | batch 1, us (ratio) | batch 64, us (ratio) | batch 1,024, us (ratio)",
        "`{network}` | {engine} | {batch_1} | {batch_64} | {batch_1024}",
        sorted(rows, key=lambda row: row["network"]),
        AGAIN.format("NETWORK"),
    )


def files_table() -> str:
    """The ONNX files in ONNX Runtime."""
    rows = newest("inference", "network", "engine", threads=1, batch=1)
    rows = [row for row in rows if row["engine"].startswith(("onnxruntime", TORCH_EXPORT))]
    return make_table(
        "network | runtime | file, bytes | nodes | accuracy | largest difference | same class",
        "`{network}` | {engine} | {bytes:,} | {nodes} | {accuracy:.2%} | {largest_difference:.1e} "
        "| {same_class:,} of {images:,}",
        sorted(rows, key=lambda row: row["network"]),
        AGAIN.format("NETWORK"),
    )


def claim() -> str:
    """README's line."""
    rows = newest("inference", "engine", network="net9954", threads=1, batch=1)
    (row,) = (row for row in rows if row["engine"] == "onnxruntime")
    return f"ONNX Runtime reads a digit in {row['p50_us']:.0f} us with `net9954` on one thread"


if __name__ == "__main__":
    run_command(InferenceOptions, main, "python -m benchmarks.inference")
