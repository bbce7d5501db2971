"""The tables and figures of the pages, made from results/ and models/: ``python -m benchmarks.pages``.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``. A test holds every page to what this writes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import rows
from benchmarks.accuracy.equivalence import MARGIN
from benchmarks.rows import Row
from lockstep import figure as lockstep_figure
from recipe import figures, report
from recipe.cli import run_command
from recipe.data import GOAL
from recipe.files import write_atomically
from recipe.record import RESULTS, read_rows

ROOT = RESULTS.parent
FIGURES = ROOT / "docs" / "figures"
PACKAGES = ("torch", "jax", "flax", "onnx", "onnxruntime", "openvino")  # a caption shows their versions

ACCURACY = "python -m benchmarks.accuracy --network NETWORK"
SEEDS = f"{ACCURACY} --seeds SEEDS"
TUNING = "python -m benchmarks.accuracy.tuning --network NETWORK --changes CHANGES --seeds SEEDS"
LOCKSTEP = "python -m lockstep --network NETWORK --recipe RECIPE"
TRAINING = "python -m benchmarks.training"
INFERENCE = "python -m benchmarks.inference --model FILE.onnx --also FILE-int8.onnx"
RUNTIMES = f"{INFERENCE} --runtimes --batches 1"
TRIAL_HEADER = "network | changes | parameters | seeds | loss | accuracy | tta | training loss"
TRIAL_LINE = (
    "`{network}` | {changes} | {parameters:,} | {seeds} | {val_loss:.4f} | {final:.2f} | {tta:.2f} "
    "| {train_loss:.4f}"
)
PRECISION_HEADER = " | precision | ms a step | accuracy after one epoch"
PRECISION_LINE = "{label} | {precision} | {step_ms:.2f} | {epoch_accuracy:.2%}"


class Table(NamedTuple):
    """A table: its marker, rows and header, and the format of a line, with the names of a row's values."""

    name: str
    rows: Callable[[], list[Row]]
    header: str
    line: str
    command: str = ""  # measures it again


PAGES = {
    "README.md": [
        Table(
            "headline",
            rows.full_run,
            "",  # a sentence, no table
            "**One MNIST network with {parameters:,} parameters, trained in PyTorch and in Flax, over all "
            "{steps:,} steps of a run\nwith dropout: in float64 the losses differ by at most "
            "{torch_jax_loss:.1e}, and with `--precision bitwise`\n{torch_jax_unequal:,} of the "
            "{state_numbers:,} numbers of the state differ.**",
        ),
        Table(
            "claims",
            rows.claims,
            "claim | measured | try it | more",
            "**{claim}** | {fact} | `python -m {again}` | [{page}](docs/{page}.md)",
        ),
    ],
    "docs/accuracy.md": [
        Table(
            "seeds",
            partial(rows.accuracies, "tuned"),
            "network | framework | parameters | last epoch of each seed | mean ± deviation | lowest | tta",
            "`{network}` | {label} | {parameters:,} | {finals} | **{mean}** | {lowest:.2f} | {tta:.2f}",
            SEEDS,
        ),
        Table(
            "equivalence",
            rows.equivalences,
            f"network | pairs | PyTorch - Flax | 90 % interval | p | equal within {MARGIN} | pairs needed",
            "`{network}` | {pairs} | {mean:+.3f} | {low:+.3f} to {high:+.3f} | {p:.2g} | {verdict} "
            "| {pairs_needed}",
            SEEDS,
        ),
        Table(
            "reference",
            partial(rows.accuracies, "reference"),
            "network | framework | last epoch | published | last five | published | best (epoch) | published",
            "`{network}` | {label} | {mean} | {their_last} | {last_five:.2f} | {their_five:.2f} | {best} "
            "| {their_best}",
            f"{ACCURACY} --framework torch --recipe reference --seeds 1",
        ),
        Table("recipes", partial(rows.trials, True), TRIAL_HEADER, TRIAL_LINE, TUNING),
        Table("networks", partial(rows.trials, False), TRIAL_HEADER, TRIAL_LINE, TUNING),
    ],
    "models/README.md": [
        Table(
            "models",
            rows.models,
            "folder | trained with | accuracy | seed | SHA-256 of the state | of `model.onnx` | trained by",
            "`{folder}` | {label} | {accuracy:.2%} | {seed} | `{digest:.12}` | `{sha256:.12}` | `{again}`",
            "python -m benchmarks.models",
        ),
    ],
    "demo/README.md": [
        Table(
            "drawings",
            partial(rows.newest, "drawings", "network", "framework", split="test"),
            "network | trained with | right | without the preparation | in doubt | scribbles in doubt",
            "`{network}` | {label} | **{right:.2%}** | {right_unprepared:.1%} | {doubted:.1%} "
            "| {doubted_scribbles:.0%}",
            "python -m benchmarks.drawings",
        ),
        Table(
            "page",
            partial(rows.newest, "drawings", "split", split="test"),
            "",
            "The first answer comes {first_answer_ms:,.0f} ms after opening. From a move of the mouse to the "
            "bars\nit takes {bars_ms_p50:.0f} ms (median), and at most {bars_ms_p95:.0f} ms for 95 of 100.",
        ),
    ],
    "docs/lockstep.md": [
        Table(
            "lockstep",
            rows.lockstep_runs,
            r"run | with | precision | steps | largest \|loss difference\| | any tensor, relative "
            r"| rms \|loss difference\| from step 20 | its noise floor, PyTorch / Flax | other predictions",
            "`{network}`, {recipe} | {chance} | {precision} | {steps:,} | {torch_jax_loss:.1e} "
            "| {tensor:.1e} | {torch_jax_loss_rms:.1e} | {floor} | {torch_jax_predictions}",
            f"{LOCKSTEP} --steps STEPS",
        ),
        Table(
            "bitwise",
            rows.bitwise_runs,
            "run | steps | numbers that differ | accuracy, % | runs in float32, % | SHA-256 of the state",
            "`{network}`, {recipe} | {steps:,} | {torch_jax_unequal} | {percent:.2f} | {float32} "
            "| `{digest}`",
            f"{LOCKSTEP} --steps all --precision bitwise --no-noise-floor",
        ),
        Table(
            "precisions",
            partial(rows.training, "precision", measure="steps", recipe="tuned", network="net9954"),
            PRECISION_HEADER,
            PRECISION_LINE,
            f"{TRAINING} --network net9954 --recipe tuned --contenders torch jax "
            "--precision float32 bfloat16 float64 bitwise --rounds 3",
        ),
    ],
    "docs/speed.md": [
        Table(
            "steps",
            partial(rows.training, "batch", "machine", **rows.STEPS),
            "network | processor | | ms a step | lowest to highest | times as fast as its script "
            "| arithmetic limit, ms | times the limit | epoch, s | compilation, s",
            "`{network}` | {instructions} | {label} | {step_ms:.2f} "
            "| {step_ms_low:.2f} to {step_ms_high:.2f} | {gain} "
            "| {limit_ms:.2f} | {times_limit:.1f} | {epoch_s:.2f} | {compile_s:.0f}",
            TRAINING,
        ),
        Table(
            "time",
            partial(rows.training, "schedule", measure="accuracy"),
            "network | | schedule, epochs | runs that get there | after epochs, mean "
            "| seconds of training, mean | lowest to highest",
            "`{network}` | {label} | {schedule} | {reached} of {seeds} | {epochs:.1f} | **{seconds:.1f}** "
            "| {seconds_low:.1f} to {seconds_high:.1f}",
            f"{TRAINING} --network net9808 --recipe tuned --contenders torch jax --time-to-accuracy 5",
        ),
        Table(
            "batches",
            partial(rows.training, "batch", measure="batches", network="net10040"),
            " | batch | us an image | MiB before training | peak MiB",
            "{label} | {batch:,} | {us_per_image:.1f} | {start_mib:,.0f} | {peak_mib:,.0f}",
            f"{TRAINING} --network net10040 --contenders torch jax --batches 64 128 512 2048",
        ),
        Table(
            "profile",
            rows.profiles,
            "processor | | operation | ms a step | share",
            "{instructions} | {label} | {part} | {step_ms:.2f} | {share:.0%}",
            f"{TRAINING} --network net10040 --contenders torch jax --profile",
        ),
        Table(
            "precision",
            partial(rows.training, "precision", measure="steps", recipe="tuned", network="net10040"),
            PRECISION_HEADER,
            PRECISION_LINE,
            f"{TRAINING} --network net10040 --recipe tuned --contenders torch jax "
            "--precision float32 bfloat16",
        ),
    ],
    "docs/inference.md": [
        Table(
            "inference",
            rows.latencies,
            "network | runtime | batch 1, us (ratio) | batch 64, us (ratio) | batch 1,024, us (ratio)",
            "`{network}` | {engine} | {batch_1} | {batch_64} | {batch_1024}",
            INFERENCE,
        ),
        Table(
            "files",
            rows.files,
            "network | runtime | file, bytes | nodes | accuracy | largest difference | same class",
            "`{network}` | {engine} | {bytes:,} | {nodes} | {accuracy:.2%} | {largest_difference:.1e} "
            "| {same_class:,} of {images:,}",
            INFERENCE,
        ),
        Table(
            "runtimes",
            rows.runtimes,
            "network | runtime | same class | largest difference | batch 1, us (ratio) | accuracy of int8",
            "`{network}` | {runtime} | {same_class:,} of {images:,} | {largest_difference:.1e} "
            "| {p50_us:,.0f} ({ratio:.2f}) | {int8}",
            RUNTIMES,
        ),
    ],
    "docs/reliability.md": [
        Table(
            "kills",
            partial(rows.newest, "reliability", "framework", "moment", test="kills"),
            "framework | killed | kills | same bits after resuming | files damaged | epochs saved: 0, 1, 2",
            "{label} | {moment} | {kills:,} | {identical:,} | {damaged} | {kept_0}, {kept_1}, {kept_2}",
            "python -m pytest -m slow tests/test_kills.py",
        ),
        Table(
            "fuzz",
            partial(rows.newest, "reliability", "reader", test="fuzz"),
            "reader | reads | inputs | accepted | refused | slowest, s | memory, MiB",
            "{reader} | {content} | {inputs:,} | {accepted:,} | {refused:,} | {slowest_s:.2f} "
            "| {memory_mib:.0f}",
            "python -m pytest -m slow tests/fuzz",
        ),
        Table(
            "determinism",
            rows.determinism,
            "framework | run | same bits on one core | on two | on one and on two | largest loss difference",
            "{label} | `{network}`, {precision}, {steps} steps | {one} | {two} | {both} "
            "| {loss_difference:.1g}",
            "python -m pytest -m slow tests/test_determinism.py",
        ),
    ],
}


class _Blank:
    """The place of a value that a row does not have: empty in any format."""

    def __format__(self, form: str) -> str:
        return ""


class _Values(dict[str, Any]):
    def __missing__(self, key: str) -> _Blank:
        return _Blank()


def make_table(table: Table) -> str:
    """A table in Markdown (or a sentence), and below it where and by which command it was measured.

    Raises:
        ValueError: results/ has no measurement for it.
    """
    measured = table.rows()
    if not measured:
        raise ValueError(f"results/ has no measurement for the table {table.name!r}")
    lines = [
        table.line.format_map(_Values({k: v for k, v in row.items() if v is not None})) for row in measured
    ]
    if not table.header:
        return "\n".join(lines)
    columns = zip(*(line.split(" | ") for line in lines), strict=True)
    rule = [
        "---:" if all(re.match(r"[+*-]*\d|not |$", cell) for cell in column) else "---" for column in columns
    ]
    markdown = "\n".join(f"| {line} |" for line in (table.header, " | ".join(rule), *lines))
    return f"{markdown}\n\n{describe_origin(measured, table.command)}"


def describe_origin(measured: Sequence[Row], command: str) -> str:
    """Where and when some rows were measured, and the command that measures them again."""
    measurements = [each for row in measured for each in row.get("rows", [row])]
    places = []
    for group in rows.grouped(measurements, "machine"):
        pairs = ((name, row["versions"].get(name)) for name in PACKAGES for row in group)
        versions = dict.fromkeys(f"{name} {version}" for name, version in pairs if version)
        details = [*versions, *sorted({row["date"] for row in group})]
        places.append(f"{describe_machine(group[0]['machine'])} ({', '.join(details)})")
    again = f" Again: `{command}`." if command else ""
    return f"Measured on {' and on '.join(places)}.{again}"


def describe_machine(key: str) -> str:
    """A machine of machines.json in words."""
    machine = rows.machines()[key]
    name = machine["processor"].replace("(R)", "").removesuffix(" Processor")
    return (
        machine["gpu"] or f"{name} with {machine['instructions']}, {report.count(machine['cores'], 'core')}"
    )


def fill_page(text: str, tables: Sequence[Table]) -> str:
    """The text of a page with its tables as the results are now.

    Raises:
        ValueError: a table has not exactly one place, or no measurement.
    """
    for table in tables:
        content = make_table(table)
        pattern = re.compile(f"(<!-- {table.name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, places = pattern.subn(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
        if places != 1:
            raise ValueError(f"there are {places} places for the table {table.name!r}")
    return text


def draw_lockstep(run: str) -> bytes:
    """The loss of both frameworks in a lockstep run and their difference, as PNG bytes."""
    return lockstep_figure.draw(read_rows("lockstep", run=run)[-1], lockstep_figure.load_series(RESULTS, run))


def draw_whole_runs() -> bytes:
    """The loss of a whole lockstep run, and how many numbers differ in each precision, as PNG bytes."""
    measured = [read_rows("lockstep", run=run)[-1] for run in rows.WHOLE_RUNS]
    series = [lockstep_figure.load_series(RESULTS, run) for run in rows.WHOLE_RUNS]
    return lockstep_figure.draw_unequal(measured, series)


def draw_accuracy() -> bytes:
    """The accuracy of every seed after its last epoch, as PNG bytes."""
    figure, axes = figures.subplots(figsize=(8, 4))
    groups = rows.accuracies("tuned")
    for position, row in enumerate(groups):
        final = [100 * seed["final"] for seed in row["rows"]]
        colour = "C0" if row["framework"] == "torch" else "C1"
        axes.plot(position + np.linspace(-0.2, 0.2, len(final)), final, "o", color=colour, alpha=0.7)
        axes.hlines(np.mean(final), position - 0.3, position + 0.3, color=colour)
    axes.axhline(100 * GOAL, ls="--", color="grey", lw=1)
    axes.text(-0.4, 100 * GOAL + 0.005, f"the task: {100 * GOAL:g} %", color="grey")
    axes.set_xticks(range(len(groups)), [f"{row['network']}\n{row['label']}" for row in groups])
    axes.set(ylabel="accuracy after the last epoch (%)")
    return figures.encode_png(figure)


PICTURES: dict[str, Callable[[], bytes]] = {
    "lockstep.png": partial(draw_lockstep, rows.FULL_RUN),
    "lockstep-bits.png": draw_whole_runs,
    "lockstep-float32.png": partial(draw_lockstep, rows.FLOAT32_RUN),
    "accuracy.png": draw_accuracy,
}


@dataclass(frozen=True)
class PagesOptions:
    """Rewrite the tables of README.md, docs/ and models/ from results/."""

    figures: bool = False
    """Draw the pictures in docs/figures/, too."""


def main(options: PagesOptions) -> None:
    """Rewrite every page, and the pictures if asked to."""
    for page, tables in PAGES.items():
        write_atomically(ROOT / page, fill_page((ROOT / page).read_text(), tables).encode())
    if options.figures:
        for name, draw in PICTURES.items():
            write_atomically(FIGURES / name, draw())


if __name__ == "__main__":
    run_command(PagesOptions, main, "python -m benchmarks.pages")
