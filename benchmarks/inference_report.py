"""Tables and pictures of inference measurements, and the JSON that holds their figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.inference_runs import Limits, Measurement
from export.images import Images
from recipe.curves import encode_png

LOSES = 0.98  # below it, and in every round below one, a ratio is a loss of the first row and no noise
POINTS = 0.0005  # of accuracy that a file may lose without a word


def tabulate(
    measurements: Sequence[Measurement], limits: Limits, floor: Measurement, images: Images, flops: int
) -> dict[str, Any]:
    """Everything measured, as JSON will hold it.

    Args:
        measurements: the first is what the others are compared with.
        limits: from `inference_runs.measure`.
        floor: of the empty graph.
        images: what the engines classified.
        flops: of one image through the network.
    """
    return {
        "engines": {each.contender.label: _describe(each, measurements[0], images) for each in measurements},
        "cells": [cell for each in measurements for cell in _cells(each, measurements[0])],
        "floor": _cells(floor, measurements[0]),
        "limit": {
            str(threads): {"gflops": rate / 1e9, "us_per_image": 1e6 * flops / rate}
            for threads, rate in limits.flops_per_second.items()
        },
        "flops_per_image": flops,
        "pinned": limits.pinned,
    }


def _describe(measurement: Measurement, first: Measurement, images: Images) -> dict[str, Any]:
    contender, logits = measurement.contender, measurement.logits
    about: dict[str, Any] = {
        "engine": contender.engine,
        "device": contender.device,
        "options": contender.options,
        "file": contender.model.name,
    }
    if measurement.failure:
        about["failure"] = measurement.failure
    if logits is not None and first.logits is not None:
        about |= measurement.cold_start
        about["accuracy"] = images.accuracy(logits)
        about["largest_difference"] = float(np.abs(logits - first.logits).max())
        about["same_class"] = int((logits.argmax(1) == first.logits.argmax(1)).sum())
        about["images"] = len(logits)
    return about


def _cells(measurement: Measurement, first: Measurement) -> list[dict[str, Any]]:
    cells = []
    for (threads, batch), cell in measurement.cells.items():
        # Round by round, so that what slows the machine for a while slows both.
        medians, theirs = cell.medians, first.cells[threads, batch].medians
        rounds = min(len(medians), len(theirs))
        ratios = medians[:rounds] / theirs[:rounds]
        cells.append(
            {
                "label": measurement.contender.label,
                "threads": threads,
                "batch": batch,
                "ratio": float(np.median(ratios)),
                "loss": bool(np.median(ratios) < LOSES and ratios.max() < 1),
                **cell.summary(batch),
            }
        )
    return cells


def start_table(result: dict[str, Any]) -> Table:
    """How each engine starts, what memory it takes, and what the very function that was timed gets right."""
    table = Table(title="start, memory, accuracy")
    columns = (
        "",
        "import ms",
        "load ms",
        "first run ms",
        "peak MiB",
        "accuracy %",
        "largest difference",
        "same",
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index == 0)
    for label, about in result["engines"].items():
        if "import_ms" not in about:
            table.add_row(label, f"[red]{about['failure']}", *[""] * 6)
            continue
        accuracy = about["accuracy"]
        table.add_row(
            label,
            *(_short(about[key]) for key in ("import_ms", "load_ms", "first_run_max_ms", "peak_mib")),
            "-" if accuracy is None else f"{100 * accuracy:.2f}",
            f"{about['largest_difference']:.1e}",
            f"{about['same_class']:,}/{about['images']:,}",
        )
    return table


def latency_tables(result: dict[str, Any]) -> list[Table]:
    """One table for each number of threads: latencies, throughput and the ratio to the first row."""
    labels = list(result["engines"])
    tables = []
    for threads in sorted({cell["threads"] for cell in result["cells"]}):
        limit = result["limit"][str(threads)]
        table = Table(title=f"{threads} thread{'s' if threads > 1 else ''}, latency in microseconds")
        columns = ("batch", "", "P50", "P90", "P99", "max", "images/s", f"P50 / {labels[0]}", "calls")
        for column in columns:
            table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
        for batch in sorted({cell["batch"] for cell in result["cells"]}):
            rows = [c for c in result["cells"] if (c["threads"], c["batch"]) == (threads, batch)]
            floor = [c for c in result["floor"] if (c["threads"], c["batch"]) == (threads, batch)]
            for cell in [*rows, *floor]:
                table.add_row(*_row(cell, dim=cell in floor))
            bound = batch * limit["us_per_image"]
            share = bound / rows[0]["p50_us"]
            rate = f"{1e6 / limit['us_per_image']:,.0f}"
            texts = [str(batch), "arithmetic limit", _short(bound), "", "", "", rate, f"{share:.2f}", ""]
            table.add_row(*texts, style="dim")
            table.add_section()
        tables.append(table)
    return tables


def _row(cell: dict[str, Any], dim: bool) -> list[str]:
    colour = "dim" if dim else "red" if cell["loss"] else "default"
    texts = [
        str(cell["batch"]),
        cell["label"],
        *(_short(cell[key]) for key in ("p50_us", "p90_us", "p99_us", "max_us")),
        f"{cell['images_per_second']:,.0f}",
        f"{cell['ratio']:.2f}",
        f"{cell['calls']:,}" + ("" if cell["stable"] else "*"),
    ]
    return [f"[{colour}]{text}[/]" for text in texts]


def _short(number: float) -> str:
    return f"{number:,.1f}" if number < 1000 else f"{number:,.0f}"


def notes(result: dict[str, Any]) -> list[str]:
    """The lines below the tables: where the first row loses, what other files bring, how far the limit is."""
    first, *others = result["engines"]
    lines = [
        f"{first} loses to {cell['label']} at batch {cell['batch']}, {_threads(cell)}: "
        f"{1 / cell['ratio']:.2f} times as long"
        for cell in result["cells"]
        if cell["loss"]
    ] or [f"{first} loses nowhere"]
    lines += [line for label in others if (line := _accuracy_note(result, first, label))]
    smallest = min(cell["batch"] for cell in result["cells"])
    for cell in result["cells"]:
        if (cell["label"], cell["batch"]) == (first, smallest):
            limit = result["limit"][str(cell["threads"])]
            lines.append(
                f"{first} at batch {smallest}, {_threads(cell)}: "
                f"{cell['p50_us'] / smallest / limit['us_per_image']:.2f} times the arithmetic limit "
                f"({result['flops_per_image'] / 1e6:.2f} MFLOP an image, float32 matrix product "
                f"{limit['gflops']:.0f} GFLOP/s)"
            )
    if any(not cell["stable"] for cell in result["cells"]):
        lines.append("* not stable at the end of a warm-up: the row is not to be trusted")
    return lines


def _threads(cell: dict[str, Any]) -> str:
    return f"{cell['threads']} thread{'s' if cell['threads'] > 1 else ''}"


def _accuracy_note(result: dict[str, Any], first: str, label: str) -> str | None:
    """What a file of its own is worth: its accuracy and how long it takes; and whoever loses accuracy."""
    ours, theirs = result["engines"][first], result["engines"][label]
    ratios = [cell["ratio"] for cell in result["cells"] if cell["label"] == label]
    if ours.get("accuracy") is None or theirs.get("accuracy") is None or not ratios:
        return None
    gain = theirs["accuracy"] - ours["accuracy"]
    if theirs["file"] == ours["file"] and gain >= -POINTS:
        return None
    slower = f"{min(ratios):.2f} to {max(ratios):.2f} times as long as {first}"
    verdict = ", more than 0.05 points lost" if gain < -POINTS else ""
    return f"{label}: {slower}; accuracy {100 * gain:+.2f} points{verdict}"


def draw(result: dict[str, Any], title: str) -> bytes:
    """Time per image against batch size, one panel for each number of threads, as PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads = sorted({cell["threads"] for cell in result["cells"]})
    figure, axes = pyplot.subplots(
        1,
        len(threads),
        figsize=(3 + 4.5 * len(threads), 4.8),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis, count in zip(axes[0], threads, strict=True):
        for index, label in enumerate(result["engines"]):
            cells = [c for c in result["cells"] if (c["label"], c["threads"]) == (label, count)]
            if cells:
                _draw_line(axis, cells, label, f"C{index}")
        floor = [c for c in result["floor"] if c["threads"] == count]
        batches = [c["batch"] for c in floor]
        axis.plot(batches, [c["p50_us"] / c["batch"] for c in floor], ":", color="grey", label="empty graph")
        limit = result["limit"][str(count)]["us_per_image"]
        axis.axhline(limit, color="black", lw=0.8, ls="--", label="arithmetic limit")
        axis.set(xscale="log", yscale="log", xlabel="batch size", title=f"{count} thread{'s'[: count - 1]}")
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.minorticks_off()
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("microseconds per image (P50, bar to P99)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return encode_png(figure)


def _draw_line(axis: Any, cells: list[dict[str, Any]], label: str, colour: str) -> None:
    batches = np.array([c["batch"] for c in cells])
    middle = np.array([c["p50_us"] for c in cells]) / batches
    high = np.array([c["p99_us"] for c in cells]) / batches
    axis.errorbar(
        batches, middle, [np.zeros(len(cells)), high - middle], marker="o", ms=4, capsize=2, lw=1.3,
        color=colour, label=label,
    )  # fmt: skip
