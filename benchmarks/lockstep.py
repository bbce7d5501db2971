"""The tables and pictures of what ``python -m lockstep`` measured."""

from typing import Any

import numpy as np

from benchmarks.accuracy import recorded_seeds
from benchmarks.record import RESULTS, Row, grouped, newest, read_rows
from benchmarks.tables import make_table
from lockstep import figure
from lockstep.runs import largest_tensor_difference
from recipe.networks import NETWORKS
from recipe.recipes import RECIPES

FULL_RUN, FLOAT32_RUN = "net9954-reference-float64-8892", "net9954-reference-float32-468"
BITWISE_RUN = "net9954-reference-bitwise-8892"
PRECISION_RUNS = (FLOAT32_RUN, "net9954-reference-float32-8892", FULL_RUN, BITWISE_RUN)
COMMAND = "lockstep --network NETWORK --recipe RECIPE"


def find_run(run: str) -> Row:
    """The newest measurement of a lockstep run, by its name."""
    return read_rows("lockstep", run=run)[-1]


def headline() -> str:
    """README's sentence under the twins: a whole run in bitwise precision."""
    row = find_run(BITWISE_RUN)
    return (
        f"A whole run on MNIST with dropout, {row['steps']:,} steps, ends in the same bits in both\n"
        f"(`--network {row['network']} --recipe {row['recipe']} --precision bitwise`):\n"
        f"`{row['torch_digest']}`."
    )


def is_whole_bitwise(row: Row) -> bool:
    """True for a run in bitwise precision to the end of its schedule."""
    return row["precision"] == "bitwise" and "torch_accuracy" in row


def runs_table() -> str:
    """The lockstep runs but those of `bitwise_table`: what was random, and the noise floor where measured."""
    rows = []
    for row in newest("lockstep", "run"):
        if row["network"] not in NETWORKS or is_whole_bitwise(row):  # the record has former networks, too
            continue
        parts = {
            f"dropout {row['dropout']:g}": row["dropout"],
            "augmentation": row["augmentation"],
            "EMA": row["ema_decay"],
            f"on {row.get('device')}": row.get("device", "cpu") != "cpu",
        }
        floors = [row.get(f"{pair}_loss_rms") for pair in ("torch_torch", "jax_jax")]
        floor = "not run" if None in floors else " / ".join(f"{value:.1e}" for value in floors)
        chance = ", ".join(part for part, there in parts.items() if there)
        rows.append(row | {"chance": chance, "floor": floor, "tensor": largest_tensor_difference(row)})
    return make_table(
        r"run | with | precision | steps | largest \|loss difference\| | any tensor, relative "
        r"| rms \|loss difference\| after step 20 | its noise floor, PyTorch / Flax | other predictions",
        "`{network}`, {recipe} | {chance} | {precision} | {steps:,} | {torch_jax_loss:.1e} "
        "| {tensor:.1e} | {torch_jax_loss_rms:.1e} | {floor} | {torch_jax_predictions}",
        rows,
        f"{COMMAND} --steps STEPS",
    )


def bitwise_table() -> str:
    """The whole runs in bitwise precision, with the accuracies that their recipe has in float32."""
    float32: dict[Any, str] = {}
    for recipe in RECIPES:
        for group in grouped(recorded_seeds(recipe, device="cpu"), "network"):
            finals = 100 * np.array([row["final"] for row in group])
            span = f" ({finals.min():.2f} to {finals.max():.2f}, {len(group)} runs)" if len(group) > 1 else ""
            float32[group[0]["network"], recipe] = f"{finals.mean():.2f}{span}"
    rows = []
    for row in newest("lockstep", "network", "recipe", "steps", precision="bitwise"):
        if row["network"] in NETWORKS and is_whole_bitwise(row):
            digest = ", ".join(dict.fromkeys([row["torch_digest"], row["jax_digest"]]))
            seen = float32.get((row["network"], row["recipe"]), "not measured")
            percent = 100 * row["torch_accuracy"]
            rows.append(row | {"digest": digest, "float32": seen, "percent": percent})
    return make_table(
        "run | steps | numbers that differ | accuracy, % | runs in float32, % | SHA-256 of the state",
        "`{network}`, {recipe} | {steps:,} | {torch_jax_unequal} | {percent:.2f} | {float32} | `{digest}`",
        rows,
        f"{COMMAND} --steps all --precision bitwise --no-noise-floor",
    )


def draw_run(run: str) -> bytes:
    """The loss of both frameworks in a lockstep run and their difference, as PNG bytes."""
    return figure.draw(find_run(run), figure.load_series(RESULTS, run))


def draw_whole_runs() -> bytes:
    """The loss of a whole lockstep run, and how far apart each precision ends, as PNG bytes."""
    rows = [find_run(run) for run in PRECISION_RUNS]
    return figure.draw_precisions(rows, [figure.load_series(RESULTS, run) for run in PRECISION_RUNS])
