"""The picture of a comparison: both loss curves, and how far they are apart."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.runs import PAIRS, Comparison
from recipe import console
from recipe.checkpoint import write_atomically
from recipe.recipes import PRECISIONS

BINS = 200  # of a long run; a shorter one shows every step
SERIES_FILE = "lockstep.npz"  # holds the series of every run, each array as RUN/NAME

PALE, BRIGHT, DARK = "#9ecae1", "#d95f02", "#222222"
COLORS = {"float32": BRIGHT, "float64": "#3182bd", "bitwise": DARK}
ZERO = 1e-18  # where a logarithmic axis shows zero

Series = dict[str, np.ndarray]


def bin_series(losses: np.ndarray, comparisons: dict[str, Comparison]) -> Series:
    """What the picture shows, in at most `BINS` bins of steps.

    Args:
        losses: (trainers, steps), PyTorch first and then Flax.
        comparisons: see `lockstep.runs.run_lockstep`.

    Returns:
        ``step``, the middle of each bin; ``torch`` and ``jax``, the mean losses; for each pair that was
        compared, the largest loss difference, and as ``PAIR_unequal`` the largest number of unequal numbers.
    """
    steps = losses.shape[1]
    bins = np.array_split(np.arange(steps), range(0, steps, bin_width(steps)))[1:]
    series = {"step": np.array([1 + part.mean() for part in bins])}
    for name, loss in zip(("torch", "jax"), losses, strict=False):
        series[name] = np.array([loss[part].mean() for part in bins])
    for pair, comparison in comparisons.items():
        difference = np.array(comparison.loss)
        series[pair] = np.array([difference[part].max() for part in bins])
        series[f"{pair}_unequal"] = np.array([max(comparison.unequal[i] for i in part) for part in bins])
    return series


def bin_width(steps: int) -> int:
    """How many steps share a bin; the last bin of a run may have fewer."""
    return -(-steps // BINS)


def load_series(folder: Path, run: str) -> Series:
    """The series of one run from the record in a folder."""
    with np.load(folder / SERIES_FILE, allow_pickle=False) as file:
        return {name.split("/")[1]: file[name] for name in file if name.startswith(f"{run}/")}


def save_series(folder: Path, run: str, series: Series) -> None:
    """Add the series of one run to the record in a folder; an earlier run of that name is replaced."""
    path, arrays = folder / SERIES_FILE, {}
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file if not name.startswith(f"{run}/")}
    arrays |= {f"{run}/{name}": array for name, array in series.items()}
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomically(path, content.getvalue())


def _draw_losses(row: dict[str, Any], series: Series) -> tuple[Any, Any]:
    """A figure with both loss curves of a run above; returns it and its lower axes."""
    figure, (above, below) = console.subplots(2, 1, figsize=(7.5, 5.2), sharex=True)
    width = bin_width(row["steps"])
    above.plot(series["step"], series["torch"], lw=5, color=PALE, label="PyTorch")
    above.plot(series["step"], series["jax"], lw=1.2, color=BRIGHT, label="Flax")
    above.set(ylabel=f"loss, mean of {width} steps" if width > 1 else "training loss", yscale="log")
    about = f"{row['network']}, recipe {row['recipe']}, {row['precision']}, {row['dataset']}"
    above.set_title(f"{about}, {row['steps']:,} steps", loc="left", fontsize="medium")
    above.legend(loc="upper right")
    return figure, below


def draw(row: dict[str, Any], series: Series) -> bytes:
    """The picture as PNG bytes.

    Args:
        row: the run's line in lockstep.jsonl.
        series: see `bin_series`.
    """
    figure, below = _draw_losses(row, series)
    width = bin_width(row["steps"])
    unit = float(np.finfo(PRECISIONS[row["precision"]].dtype).eps)
    below.axhline(unit, color="grey", lw=1, ls="--", label=f"rounding of {row['precision']} at 1: {unit:.1e}")
    for pair, label, color, linewidth in (
        ("torch_torch", "noise floor: PyTorch and PyTorch", PALE, 2.5),
        ("jax_jax", "noise floor: Flax and Flax", BRIGHT, 1.2),
        ("torch_jax", f"PyTorch and Flax: at most {row['torch_jax_loss']:.1e}", DARK, 1.2),
    ):
        if pair in series:
            difference = np.where(series[pair] > 0, series[pair], np.nan)
            marker = "." if width == 1 else ""  # a step between two zeros makes no line
            below.plot(
                series["step"], difference, marker=marker, ms=4, lw=linewidth, color=color, label=label
            )
    equal = series["step"][series["torch_jax"] == 0]
    if len(equal):  # zero has no place on a logarithmic axis
        bottom = below.get_xaxis_transform()
        below.plot(equal, np.full(len(equal), 0.03), "|", color=DARK, transform=bottom, label="no difference")
    shown = np.concatenate([series[pair] for pair in PAIRS if pair in series] + [[unit]])
    below.set(yscale="log", ylim=(shown[shown > 0].min() / 5, shown.max() * 50))  # room for the legend
    below.set(
        xlabel="step", ylabel=f"|loss difference|, {f'largest of {width}' if width > 1 else 'each step'}"
    )
    below.legend(loc="upper right", ncols=2, fontsize="small")
    below.xaxis.get_major_locator().set_params(integer=True)
    return console.encode_png(figure)


def draw_precisions(rows: Sequence[dict[str, Any]], all_series: Sequence[Series]) -> bytes:
    """Both loss curves of the last run, and how far the frameworks are apart in each, as PNG bytes.

    A run whose state never differs has its line at zero, below the logarithmic axis.

    Args:
        rows: the runs' lines in lockstep.jsonl, of one network and recipe. A short run, whose bins are finer,
            is drawn in place of the beginning of the next.
        all_series: of the same runs.
    """
    figure, below = _draw_losses(rows[-1], all_series[-1])
    drawn: dict[str, int] = {}  # by precision, the last step so far
    for row, series in zip(rows, all_series, strict=True):
        width, precision = bin_width(row["steps"]), row["precision"]
        color, edges = COLORS[precision], np.arange(len(series["step"]) + 1) * width
        edges = np.clip(edges, max(drawn.get(precision, 0), 1), row["steps"])
        drawn[precision] = row["steps"]
        if row.get("torch_jax_unequal") == 0:
            below.plot(edges, np.full(len(edges), ZERO), lw=3, color=color)
            words, height = f"0 of the state's {row['state_numbers']:,} numbers differ", ZERO
        else:
            values = np.where(series["torch_jax"] > 0, series["torch_jax"], np.nan)
            below.stairs(values, edges, baseline=None, lw=1.5, color=color)
            words, height = f"losses differ by at most {row['torch_jax_loss']:.1e}", np.nanmax(values)
        if row["steps"] == rows[-1]["steps"]:
            below.text(edges[-1], 3 * height, f"{precision}: {words}", ha="right", color=color)
    powers = range(-16, 1, 4)
    below.set(xlabel="step", xscale="log", yscale="log", ylim=(ZERO / 5, 20))
    below.set_yticks([ZERO, *(10.0**power for power in powers)], ["0", *(f"1e{p}" for p in powers)])
    widths = [bin_width(row["steps"]) for row in rows]
    below.set_ylabel(f"|loss difference|,\nlargest of {min(widths)} to {max(widths)} steps")
    return console.encode_png(figure)
