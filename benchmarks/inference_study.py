"""What makes ONNX Runtime faster or slower on a file: ``python -m benchmarks.inference_study --help``.

Each row changes one thing: the graph, a session setting, or how it is called. The ratios say what it brought.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.inference import available_cores, describe_run, find_checkpoint, run, save, show
from benchmarks.inference_runs import Contender, Settings
from export.build import build_model
from export.fold import Convolution, Step, fold, steps_of
from export.images import Images, load_images
from export.metadata import get_metadata
from export.quantize import quantize
from export.verify import read_model
from recipe import report
from recipe.checkpoint import Checkpoint, load_checkpoint
from recipe.errors import UserError
from recipe.options import run_command

CHUNKS = (4, 8, 16, 32)
BLOCK = 16  # channels in a block of ONNX Runtime's NCHWc layout with AVX-512


@dataclass(frozen=True)
class StudyOptions:
    """Time variants of an exported file in ONNX Runtime, and of its rivals."""

    model: Path
    """ONNX file written by python -m export."""
    checkpoint: Path | None = None
    """The run it was exported from [looked for beside the model and in runs/, by the weights' SHA-256]."""
    batches: tuple[int, ...] = (1, 8, 64, 1024)
    """Images per call."""
    rounds: int = 3
    """Processes for each variant and number of threads, in alternating order."""
    seconds: float = 1.0
    """Of timing for each batch size in each process."""
    quick: bool = False
    """A trial: batch 64, one thread, one round; writes no file unless --out is given."""
    data_dir: Path | None = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    out: Path | None = None
    """Result file [results/inference-study-NETWORK.json]; the picture goes beside it."""


def pad_channels(steps: Sequence[Step], block: int) -> list[Step]:
    """Fill the channels between convolutions up to whole blocks, with filters of zeros."""
    padded: list[Step] = []
    last = max(index for index, step in enumerate(steps) if isinstance(step, Convolution))
    extra = 0  # channels of zeros that the previous convolution gained
    for index, step in enumerate(steps):
        if isinstance(step, Convolution):
            gained = 0 if index == last else -len(step.weight) % block
            weight = np.pad(step.weight, ((0, gained), (0, extra), (0, 0), (0, 0)))
            step = replace(step, weight=weight, bias=np.pad(step.bias, (0, gained)))
            extra = gained
        elif extra and not hasattr(step, "operation"):
            raise ValueError(f"{step.name} between convolutions has channels of its own")
        padded.append(step)
    return padded


def write_graphs(checkpoint: Checkpoint, images: Images, folder: Path) -> dict[str, Path]:
    """The same function as other graphs, by label."""
    network = checkpoint.network
    steps = steps_of(network, checkpoint.model)
    merged = fold(steps)
    graphs = {
        "graph: nothing folded": steps,
        "graph: not merged": fold(steps, merge=False),
        "graph: average merged": fold(steps, merge_average=True),
    }
    try:
        graphs[f"graph: channels padded to {BLOCK}"] = pad_channels(merged, BLOCK)
    except ValueError as error:
        report.show_notice(f"channels cannot be padded: {error}")
    models = {label: build_model(network, each) for label, each in graphs.items()}
    if images.train is not None:
        models["int8"] = quantize(build_model(network, merged), images.train)
    paths = {}
    for index, (label, model) in enumerate(models.items()):
        paths[label] = folder / f"{index}.onnx"
        paths[label].write_bytes(model.SerializeToString())
    return paths


def list_variants(
    model: Path, checkpoint: Path, graphs: dict[str, Path], chunks: Sequence[int]
) -> list[Contender]:
    """The file as it is, then every variant."""
    first = Contender("onnxruntime", "onnxruntime", model, checkpoint)
    settings = {
        "layout: NCHW, not NCHWc": {"disabled": ["NchwcTransformer"]},
        "threads: no spinning": {"spinning": False},
        "batch: fixed": {"fixed_batch": True},
        "call: bound buffers": {"binding": True},
        **{f"call: {size} images at a time": {"chunk": size} for size in chunks},
    }
    rivals = {
        "torch-eager, channels last": ("torch-eager", {"channels_last": True}),
        "torch-compile": ("torch-compile", {}),
        "torch-compile, freezing": ("torch-compile", {"freezing": True}),
        "openvino f32": ("openvino", {"precision": "f32"}),
        "openvino bf16": ("openvino", {"precision": "bf16"}),
    }
    return [
        first,
        *(replace(first, label=label, model=path) for label, path in graphs.items()),
        *(replace(first, label=label, options=options) for label, options in settings.items()),
        *(
            replace(first, label=label, engine=engine, options=options)
            for label, (engine, options) in rivals.items()
        ),
    ]


def main(options: StudyOptions) -> None:
    """Compare the variants as the command line says.

    Raises:
        UserError: a faulty option, file or data folder.
    """
    if not options.batches or not all(1 <= batch <= 65_536 for batch in options.batches):
        raise UserError("--batches must be numbers from 1 to 65536")
    if not 1 <= options.rounds <= 1000 or not 0 < options.seconds <= 3600:
        raise UserError("--rounds must be 1 to 1000 and --seconds more than 0 and up to 3600")
    settings = Settings(
        batches=tuple(sorted(set(options.batches))),
        threads=tuple(sorted({1, available_cores()})),
        rounds=options.rounds,
        seconds=options.seconds,
        warm_seconds=2 * options.seconds,
    )
    if options.quick:
        settings = Settings(batches=(64,), threads=(1,), rounds=1, seconds=0.3, warm_seconds=0.6)
    content, model = read_model(options.model)
    metadata = get_metadata(model)
    path = find_checkpoint(options.checkpoint, options.model, metadata)
    checkpoint = load_checkpoint(path)
    images = load_images(checkpoint, options.data_dir)
    result = describe_run(options.model, content, settings, images)
    result["spinning"] = True
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        graphs = write_graphs(checkpoint, images, Path(folder))
        variants = list_variants(options.model, path, graphs, CHUNKS)
        result |= run(variants, checkpoint, images, settings)
    show(result)
    name = Path("results") / f"inference-study-{checkpoint.network.name}.json"
    out = options.out or (None if options.quick else name)
    if out is not None:
        save(result, out)


if __name__ == "__main__":
    run_command(StudyOptions, main, "python -m benchmarks.inference_study")
