"""The measurements in results/, summed up as the tables of `benchmarks.pages` show them."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.accuracy.equivalence import MARGIN, compare_frameworks, pairs_needed
from benchmarks.inference.runtimes import RUNTIMES
from benchmarks.training.contenders import LABELS
from lockstep.runs import largest_tensor_difference
from recipe.networks import NETWORKS, get_network
from recipe.recipes import RECIPES
from recipe.record import MACHINES, RESULTS, read_rows

MODEL_LIST = RESULTS.parent / "models" / "models.json"
MODEL_SEEDS = 10  # models/ has the run in the middle of so many; the number was fixed before the first
FULL_RUN, FLOAT32_RUN = "net9954-reference-float64-8892", "net9954-reference-float32-468"
WHOLE_RUNS = ("net9954-reference-bitwise-8892", FULL_RUN, "net9954-reference-float32-8892")
SHOWN_SHARE = 0.04  # of a step's time, for an operation to be in a profile's table
STEPS = {"measure": "steps", "recipe": "reference", "precision": "float32"}

# What is known of the published run of each network, in percent of the test images. net9954's is
# https://github.com/Enamulla577/EVA5-Session4/blob/main/S4/MNIST_Model.ipynb
PUBLISHED = {
    "net10040": {"their_last": 99.33, "their_five": 99.30, "their_best": "99.43 (17)"},
    "net9954": {"their_last": 99.26, "their_five": 99.32, "their_best": "99.42 (17)"},
}

Row = dict[str, Any]  # a measurement, or several summed up, which are then under "rows"


def grouped(rows: Sequence[Row], *keys: str) -> list[list[Row]]:
    """Rows with the same values of some keys, in the order in which they first appear."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return list(groups.values())


def newest(file: str, *keys: str, **where: Any) -> list[Row]:
    """Of the rows of a file with the same values of some keys, the last one, with a ``label`` to show."""
    rows = [group[-1] for group in grouped(read_rows(file, **where), *keys)]
    return [row | {"label": LABELS.get(row.get("contender", row.get("framework", "")))} for row in rows]


def seeds(recipe: str) -> list[Row]:
    """The newest measurement of each seed on MNIST, by network."""
    rows = newest("seeds", "network", "framework", "seed", recipe=recipe, dataset="mnist")
    rows = [row for row in rows if row["network"] in NETWORKS]  # the record has former networks, too
    return sorted(rows, key=lambda row: list(NETWORKS).index(row["network"]))


def accuracies(recipe: str) -> list[Row]:
    """The seeds of each network and framework summed up, in percent."""
    rows = []
    for group in grouped(seeds(recipe), "network", "framework"):
        final = 100 * np.array([row["final"] for row in group])
        last_five = [np.mean(row["accuracies"][-5:]) for row in group]
        std = f" ± {final.std(ddof=1):.2f}" if len(group) > 1 else ""
        best = f"{100 * max(row['best'] for row in group):.2f} ({group[0]['best_epoch']})"
        summary = {
            "rows": group,
            "seeds": len(group),
            "finals": ", ".join(f"{value:.2f}" for value in final),
            "mean": f"{final.mean():.2f}{std}",
            "lowest": final.min(),
            "last_five": 100 * np.mean(last_five),
            "best": best if len(group) == 1 else "",
            "tta": 100 * np.mean([row.get("tta", np.nan) for row in group]),
        }
        rows.append(group[0] | PUBLISHED.get(group[0]["network"], {}) | summary)
    return rows


def middle_seeds() -> list[Row]:
    """Of the first ten seeds of a network in a framework the one in the middle, of two the lower one."""
    first = [row for row in seeds("tuned") if row["seed"] < MODEL_SEEDS]
    return [
        sorted(group, key=lambda row: (row["final"], row["seed"]))[(len(group) - 1) // 2]
        for group in grouped(first, "network", "framework")
    ]


def model_folder(seed: Row) -> str:
    """The folder of a published model, in models/ and of its run in runs/models/."""
    return f"{seed['network']}-{seed['framework']}"


def training_command(seed: Row) -> str:
    """The command that trains a seed on record once more, on one core, so that its bits can be had again."""
    options = f"--network {seed['network']} --seed {seed['seed']} --out runs/models/{model_folder(seed)}"
    return f"taskset -c 0 python -m {seed['framework']}_impl.train {options}"


def models() -> list[Row]:
    """The published models and the commands that train them."""
    return [
        entry | {"label": LABELS[entry["framework"]], "again": training_command(entry)}
        for entry in json.loads(MODEL_LIST.read_text())["models"]
    ]


def equivalences() -> list[Row]:
    """The equivalence test of each network."""
    rows = []
    for group in grouped(seeds("tuned"), "network"):
        if result := compare_frameworks(group):
            verdict = {
                "verdict": "yes" if result.equivalent else "not shown",
                "pairs_needed": pairs_needed(result.mean, result.std, MARGIN),
            }
            rows.append(group[0] | result._asdict() | verdict | {"rows": group})
    return rows


def trials(published: bool) -> list[Row]:
    """The trials on the hold-out, each over its seeds, the lowest loss first."""
    rows = []
    for group in grouped(newest("tuning", "network", "changes", "seed"), "network", "changes"):
        if (group[0]["network"] in NETWORKS) == published:
            means = {key: np.mean([row[key] for row in group]) for key in ("val_loss", "train_loss")}
            percents = {key: 100 * np.mean([row[key] for row in group]) for key in ("final", "tta")}
            rows.append(group[0] | means | percents | {"rows": group, "seeds": len(group)})
    return sorted(rows, key=lambda row: row["val_loss"])


def lockstep_runs() -> list[Row]:
    """The lockstep runs: what was random in them, and the noise floor where it was measured."""
    rows = []
    for row in newest("lockstep", "run"):
        if row["network"] not in NETWORKS:
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
    return rows


def bitwise_runs() -> list[Row]:
    """The whole lockstep runs in bitwise precision, with the accuracies that their recipe has in float32."""
    float32 = {}
    for recipe in RECIPES:
        for group in grouped(seeds(recipe), "network"):
            finals = 100 * np.array([row["final"] for row in group])
            span = f" ({finals.min():.2f} to {finals.max():.2f}, {len(group)} runs)" if len(group) > 1 else ""
            float32[group[0]["network"], recipe] = f"{finals.mean():.2f}{span}"
    whole = [row for row in read_rows("lockstep", precision="bitwise") if "torch_accuracy" in row]
    shown = []
    for *_, row in grouped([row for row in whole if row["network"] in NETWORKS], "network", "recipe"):
        same = row["torch_digest"] == row["jax_digest"]
        digest = row["torch_digest"] if same else f"{row['torch_digest']}, {row['jax_digest']}"
        seen = float32.get((row["network"], row["recipe"]), "not measured")
        shown.append(row | {"digest": digest, "float32": seen, "percent": 100 * row["torch_accuracy"]})
    return shown


def machines() -> dict[str, Row]:
    """The machines of the measurements, by their keys."""
    return json.loads((RESULTS / MACHINES).read_text())


def training(*keys: str, **where: Any) -> list[Row]:
    """The rows of the training benchmark on the CPU that have some values."""
    rows = newest("training", "contender", "network", *keys, device="cpu", **where)
    known = machines()
    for row in rows:
        row["instructions"] = known[row["machine"]]["instructions"]
        if row.get("speedup"):
            row["gain"] = "{speedup:.2f} ({speedup_low:.2f} to {speedup_high:.2f})".format(**row)
    return rows


def profiles() -> list[Row]:
    """The larger parts of a training step of net10040, of each framework on each processor."""
    rows = training("operation", "machine", measure="profile", network="net10040")
    for row in rows:
        whole = row["operation"] == "whole step"
        row["part"] = row["operation"] if whole else f"`{row['operation'][:60]}`"
    return [row for row in rows if row["share"] >= SHOWN_SHARE]


def latencies() -> list[Row]:
    """Each file in each runtime on one thread: median microseconds by batch, with a star if not settled."""
    rows = []
    for group in grouped(newest("inference", "network", "engine", "batch", threads=1), "network", "engine"):
        cells = {
            f"batch_{row['batch']}": "{p50_us:,.0f}{star} ({ratio:.2f})".format(
                **row, star="" if row["settled"] else r"\*"
            )
            for row in group
        }
        rows.append(group[0] | cells | {"rows": group})
    return sorted(rows, key=lambda row: row["network"])


def files() -> list[Row]:
    """The ONNX files, as ONNX Runtime reads them one image at a time."""
    rows = newest("inference", "network", "engine", threads=1, batch=1)
    rows = [row for row in rows if row["engine"].startswith(("onnxruntime", "torch.onnx.export"))]
    return sorted(rows, key=lambda row: row["network"])


def runtimes() -> list[Row]:
    """Each of the other runtimes on one image at a time, and the accuracy of the int8 file in it."""
    rows = {
        (row["network"], row["engine"]): row
        for row in newest("runtimes", "network", "engine", threads=1, batch=1)
    }
    shown = []
    for (network, engine), row in rows.items():
        if engine == "onnxruntime" or engine.endswith(" int8"):
            continue
        int8 = rows.get((network, f"{engine} int8"))
        package = RUNTIMES[engine][0] if engine in RUNTIMES else engine.split("-")[0]
        version = row["versions"].get(package, "")
        details = {
            "runtime": f"{engine} {version}".strip(),
            "int8": "no" if int8 is None else f"{int8['accuracy']:.2%}",
            "rows": [row] if int8 is None else [row, int8],
        }
        shown.append(row | details)
    return sorted(shown, key=lambda row: row["network"])


def determinism() -> list[Row]:
    """Whether the same seed gave the same bits, in words."""
    rows = newest("reliability", "framework", "network", test="determinism")
    words = {"same_1_thread": "one", "same_2_threads": "two", "same_1_and_2": "both"}
    return [row | {word: "yes" if row[key] else "no" for key, word in words.items()} for row in rows]


def full_run() -> list[Row]:
    """The lockstep run over a whole schedule in float64, and how many numbers differ in the bitwise one."""
    (bitwise,) = newest("lockstep", "run", run=WHOLE_RUNS[0])
    (row,) = newest("lockstep", "run", run=FULL_RUN)
    words = {key: bitwise[key] for key in ("torch_jax_unequal", "state_numbers")}
    return [row | words | {"parameters": get_network(row["network"]).parameter_count}]


def claims() -> list[Row]:
    """README's four claims, each with the measurement that it rests on."""
    (run,) = full_run()
    torch, flax = (row for row in accuracies("tuned") if row["network"] == "net9808")
    intervals = ", ".join(
        f"`{row['network']}` {row['low']:+.3f} to {row['high']:+.3f}" for row in equivalences()
    )
    steps = [row for row in training("machine", **STEPS) if "speedup" in row]
    engine = {
        row["engine"]: row for row in newest("inference", "engine", network="net9954", threads=1, batch=1)
    }
    onnx, eager = engine["onnxruntime"], engine["torch-eager"]

    def gains(contender: str) -> str:
        speedups = [row["speedup"] for row in steps if row["contender"] == contender]
        return f"{min(speedups):.1f} to {max(speedups):.1f}"

    again = "lockstep --network net9954 --recipe reference --steps 100"
    seeds_again = "benchmarks.accuracy --network net9808 --seeds 10"
    onnx_again = "benchmarks.inference --model models/net9954-torch/model.onnx"
    same = (
        f"The losses of PyTorch and Flax differ by at most {run['torch_jax_loss']:.1e} over all "
        f"{run['steps']:,} steps of a run with dropout, in float64."
    )
    accuracy = (
        f"{torch['parameters']:,} parameters reach {torch['mean']} % on the test images in PyTorch "
        f"({torch['seeds']} seeds), {flax['mean']} % in Flax ({flax['seeds']} seeds), after the last epoch. "
        f"PyTorch's mean minus Flax's, 90 % intervals in points: {intervals}."
    )
    speed = (
        f"A training step is {gains('torch')} times as fast as that of a hand-written PyTorch script, and "
        f"{gains('jax')} times as fast as that of a hand-written Flax script, by network and processor."
    )
    latency = (
        f"ONNX Runtime takes {onnx['p50_us']:.0f} us for one image of `net9954` on one thread, eager PyTorch "
        f"{eager['ratio']:.1f} times as long."
    )
    return [
        run | {"claim": "same run", "page": "lockstep", "fact": same, "again": again},
        torch | {"claim": "accuracy", "page": "accuracy", "fact": accuracy, "again": seeds_again},
        {"claim": "speed", "page": "speed", "fact": speed, "again": "benchmarks.training", "rows": steps},
        onnx | {"claim": "ONNX", "page": "inference", "fact": latency, "again": onnx_again},
    ]
