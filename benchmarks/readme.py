"""README's tables."""

from pathlib import Path

from benchmarks.reference import PUBLISHED
from benchmarks.tables import FRAMEWORKS, Tables, load_results, markdown_table
from recipe.networks import get_network


def reference_table() -> str:
    """Our `reference` runs beside the published ones."""
    rows = []
    for result in load_results("reference-*.json"):
        ours, published, run = result["ours"], result["published"], result["run"]
        rows.append(
            [
                f"`{run['network']}`",
                FRAMEWORKS[run["framework"]],
                f"{get_network(run['network']).parameter_count:,}",
                str(run["recipe"]["epochs"]),
                f"**{ours['final']:.2f}**",
                f"{ours['last_five']:.2f}",
                f"{published['last_five']:.2f}",
                f"{ours['best']:.2f} ({ours['best_epoch']})",
                f"{published['best']:.2f} ({published['best_epoch']})",
            ]
        )
    header = ["network", "framework", "parameters", "epochs", "last epoch", "last five", "published"]
    return markdown_table([*header, "best (epoch)", "published"], rows)


def lockstep_table() -> str:
    """The largest differences between the frameworks."""
    rows = []
    for result in load_results("lockstep-*.json"):
        pair = result["pairs"]["torch-jax"]
        tensors = max(pair["worst_relative_difference"].values())
        floors = [
            other["rms_loss_difference_from_step_20"]
            for name, other in result["pairs"].items()
            if name != "torch-jax"
        ]
        recipe = result["recipe"]
        chance = [f"dropout {recipe['dropout']:g}"] if recipe["dropout"] else []
        chance += ["augmentation"] if recipe["rotation"] else []
        chance += ["EMA"] if recipe["ema"] else []
        rows.append(
            [
                f"`{result['network']}`, {recipe['name']}",
                ", ".join(chance),
                result["precision"],
                f"{result['steps']:,}",
                f"{pair['worst_loss_difference']:.1e}",
                f"{tensors:.1e}",
                f"{pair['rms_loss_difference_from_step_20']:.1e}",
                " / ".join(f"{floor:.1e}" for floor in floors) or "not run",
                str(pair["differing_predictions"]),
            ]
        )
    header = ["run", "with", "precision", "steps", "loss", "any tensor, relative", "rms loss from step 20"]
    return markdown_table([*header, "the same, with itself", "predictions that differ"], rows)


def training_table() -> str:
    """Time per step against the hand-written scripts."""
    rows = []
    for result in load_results("training-cpu.json"):
        for network, figures in result["networks"].items():
            for kind, name in FRAMEWORKS.items():
                ours, script = (figures["contenders"][key]["step_ms"] for key in (kind, f"{kind}-script"))
                gain = figures["speedups"][kind]
                rows.append(
                    [
                        f"`{network}`",
                        name,
                        f"{script['median']:.1f}",
                        f"**{ours['median']:.1f}**",
                        f"{gain['median']:.2f} ({gain['lowest']:.2f} to {gain['highest']:.2f})",
                        f"{figures['limit_ms']:.1f}",
                    ]
                )
    header = ["network", "framework", "hand-written script, ms a step", "here, ms a step"]
    return markdown_table([*header, "times as fast", "arithmetic limit, ms"], rows)


def inference_table() -> str:
    """Median latency on one thread, and its ratio to ONNX Runtime's."""
    results = list(load_results("inference-net*.json"))
    batches = (1, 64, 1024)
    rows = []
    for result in results:
        cells = {(cell["label"], cell["batch"]): cell for cell in result["cells"] if cell["threads"] == 1}
        for label in dict.fromkeys(label for label, _ in cells):
            row = [f"`{Path(result['model']['file']).stem}`", label]
            for batch in batches:
                cell = cells[label, batch]
                unsure = "" if cell["stable"] else "\\*"
                row.append(f"{cell['p50_us']:,.0f}{unsure} ({cell['ratio']:.2f})")
            rows.append(row)
    header = [f"batch {batch:,}, us (ratio)" for batch in batches]
    return markdown_table(["file", "runtime", *header], rows)


def seeds_table() -> str:
    """Final accuracies over many seeds, beside the published single runs."""
    rows = []
    for result in load_results("seeds-*.json"):
        published = PUBLISHED.get(result["network"])
        for kind, found in result["summary"].items():
            deviation = "" if found["deviation"] is None else f" ± {found['deviation']:.2f}"
            rows.append(
                [
                    f"`{result['network']}`",
                    FRAMEWORKS[kind],
                    f"{result['parameters']:,}",
                    str(result["recipe"]["epochs"]),
                    f"**{found['mean']:.2f}**{deviation}",
                    f"{found['minimum']:.2f}",
                    str(found["seeds"]),
                    f"{published['best']:.2f}, once" if published else "-",
                ]
            )
    header = ["network", "framework", "parameters", "epochs", "mean ± deviation", "lowest", "seeds"]
    return markdown_table([*header, "published"], rows)


TABLES: Tables = {
    "seeds": seeds_table,
    "reference": reference_table,
    "lockstep": lockstep_table,
    "training": training_table,
    "inference": inference_table,
}
