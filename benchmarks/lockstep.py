"""The tables and pictures of what ``python -m lockstep`` measured."""

from typing import Any

import numpy as np

from benchmarks.accuracy import recorded_seeds
from benchmarks.record import RESULTS, Row, grouped, newest, read_rows
from benchmarks.tables import make_table
from lockstep import figure
from lockstep.runs import largest_tensor_difference
from recipe.networks import NETWORKS, get_network
from recipe.recipes import RECIPES

FULL_RUN, FLOAT32_RUN = "net9954-reference-float64-8892", "net9954-reference-float32-468"
WHOLE_RUNS = ("net9954-reference-bitwise-8892", FULL_RUN, "net9954-reference-float32-8892")
COMMAND = "lockstep --network NETWORK --recipe RECIPE"


def find_run(run: str) -> Row:
    """The newest measurement of a lockstep run, by its name."""
    return read_rows("lockstep", run=run)[-1]


def headline() -> str:
    """README's first sentence: a whole run in float64, and how many numbers differ in the bitwise one."""
    bitwise, row = find_run(WHOLE_RUNS[0]), find_run(FULL_RUN)
    return (
        f"**One MNIST network with {get_network(row['network']).parameter_count:,} parameters, trained in "
        f"PyTorch and in Flax, over all {row['steps']:,} steps of a run\nwith dropout: in float64 the losses "
        f"differ by at most {row['torch_jax_loss']:.1e}, and with `--precision bitwise`\n"
        f"{bitwise['torch_jax_unequal']:,} of the {bitwise['state_numbers']:,} numbers of the state differ.**"
    )


def claim() -> Row:
    """README's claim, with the run that it rests on."""
    row = find_run(FULL_RUN)
    fact = (
        f"The losses of PyTorch and Flax differ by at most {row['torch_jax_loss']:.1e} over all "
        f"{row['steps']:,} steps of a run with dropout, in float64."
    )
    return row | {"fact": fact, "again": "lockstep --network net9954 --recipe reference --steps 100"}


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
        r"| rms \|loss difference\| from step 20 | its noise floor, PyTorch / Flax | other predictions",
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
    """The loss of a whole lockstep run, and how many numbers differ in each precision, as PNG bytes."""
    rows = [find_run(run) for run in WHOLE_RUNS]
    return figure.draw_unequal(rows, [figure.load_series(RESULTS, run) for run in WHOLE_RUNS])
