"""The tables of docs/speed.md. What was not measured yet is named, with the command that does."""

from typing import Any

from benchmarks.tables import Tables, describe_origin, load_result, markdown_table, unmeasured
from benchmarks.training_contenders import LABELS

PROFILED = 10  # operations shown


def steps_tables(networks: dict[str, Any]) -> str:
    """Step and epoch times of each network, and what they come to as ratios."""
    rows, lines = [], []
    for network, found in networks.items():
        if "failure" in found:
            lines.append(f"{network}: {found['failure']}.")
            continue
        for kind, figures in found["contenders"].items():
            step, epoch = figures["step_ms"], figures["epoch_s"]
            rows.append(
                [
                    f"`{network}`",
                    LABELS[kind],
                    f"{step['median']:.2f}",
                    f"{step['min']:.2f} to {step['max']:.2f}",
                    f"{figures['times_limit']:.1f}",
                    "-" if epoch is None else f"{epoch:.2f}",
                    f"{figures['compile_s']:.0f}",
                ]
            )
        rate = found["matrix_flops_per_second"]["median"] / 1e9
        lines.append(
            f"`{network}`, batch {found['recipe']['batch']}: {found['step_flops'] / 1e9:.3g} GFLOP a step, "
            f"at {rate:,.0f} GFLOP/s {found['limit_ms']:.2f} ms. " + ratios(found["speedups"])
        )
    header = [
        "network",
        "",
        "ms a step",
        "lowest to highest",
        "times the limit",
        "epoch, s",
        "compilation, s",
    ]
    return markdown_table(header, rows) + "\n\n" + "\n".join(f"- {line}" for line in lines)


def ratios(speedups: dict[str, dict[str, float]]) -> str:
    """Ratios as a sentence."""
    words = {
        "torch": "PyTorch {:.2f}x its script",
        "jax": "Flax {:.2f}x its script",
        "jax_over_torch": "Flax's step {:.2f}x PyTorch's",
    }
    parts = [words[name].format(ratio["median"]) for name, ratio in speedups.items()]
    return ", ".join(parts) + "." if parts else ""


def cpu_table() -> str:
    """The comparison on the CPU."""
    result = load_result("training-cpu")
    if result is None:
        return unmeasured("benchmarks.training")
    return describe_origin(result) + "\n\n" + steps_tables(result["networks"])


def batches_of(sizes: dict[str, dict[str, Any]]) -> str:
    """Time per image and memory by batch size."""
    rows = []
    for kind, found in sizes.items():
        for batch, figures in found.items():
            where = "gpu_mib" if "gpu_mib" in figures["peak_memory"] else "process_mib"
            before, peak = figures["memory_before_training"][where], figures["peak_memory"][where]
            cells = [f"{figures['us_per_image']:.1f}", f"{before:,.0f}", f"{peak:,.0f}"]
            rows.append([LABELS[kind], batch, *cells])
    return markdown_table(["", "batch", "us an image", "MiB before training", "peak MiB"], rows)


def batches_table() -> str:
    """Batch sizes on the CPU."""
    result = load_result("training-batches")
    if result is None or not result["batch_sizes"]:
        return unmeasured(
            "benchmarks.training --network net10040 --rounds 1 --steps 5 --epochs 0 "
            "--out results/training-batches.json"
        )
    return describe_origin(result) + "\n\n" + batches_of(result["batch_sizes"])


def profile_table() -> str:
    """Where a step's time goes."""
    result = load_result("training-profile")
    if result is None:
        return unmeasured("benchmarks.training_profile")
    rows = []
    for kind, found in result["ms_per_step"].items():
        total = sum(found.values())
        for name, milliseconds in list(found.items())[:PROFILED]:
            rows.append(
                [LABELS[kind], f"`{name[:60]}`", f"{milliseconds:.2f}", f"{milliseconds / total:.0%}"]
            )
        rows.append([LABELS[kind], "all", f"{total:.2f}", ""])
    head = f"{describe_origin(result)} `{result['network']}`, {result['recipe']}, batch {result['batch']}."
    return head + "\n\n" + markdown_table(["", "operation", "ms a step", "share"], rows)


def precision_table() -> str:
    """float32 beside bfloat16."""
    result = load_result("training-precision")
    if result is None:
        return unmeasured("benchmarks.training_precision")
    rows = [
        [LABELS[kind], precision, f"{figures['step_ms']:.2f}", f"{100 * figures['val_accuracy']:.2f} %"]
        for kind, precisions in result["found"].items()
        for precision, figures in precisions.items()
    ]
    header = ["", "precision", "ms a step", "validation accuracy after one epoch"]
    head = f"{describe_origin(result)} `{result['network']}`, {result['recipe']}, {result['data']['name']}."
    return head + "\n\n" + markdown_table(header, rows)


def accuracy_rows(found: dict[str, Any]) -> str:
    """Time to 99.4 %."""
    rows = [
        [
            LABELS[kind],
            str(figures["of"]),
            "yes" if figures["reached"] else "no",
            str(figures["epochs"]),
            f"{figures['seconds']:.1f}",
            f"{100 * max(figures['accuracies']):.2f} %",
        ]
        for kind, results in found.items()
        if kind != "recipe"
        for figures in results
    ]
    return markdown_table(["", "schedule, epochs", "99.4 %", "epochs", "s of training", "best"], rows)


def accuracy_table() -> str:
    """Time to 99.4 % on the CPU."""
    result = load_result("training-accuracy")
    if result is None:
        return unmeasured(
            "benchmarks.training --network net10040 --rounds 1 --epochs 0 --batches --time-to-accuracy "
            "--out results/training-accuracy.json"
        )
    tables = [
        f"`{network}`:\n\n{accuracy_rows(found)}" for network, found in result["time_to_accuracy"].items()
    ]
    return describe_origin(result) + "\n\n" + "\n\n".join(tables)


def gpu_table() -> str:
    """Everything that `benchmarks.gpu` found."""
    training = load_result("gpu-training")
    if training is None:
        return unmeasured("benchmarks.gpu")
    parts = [describe_origin(training), steps_tables(training["found"])]
    if (accuracy := load_result("gpu-time-to-accuracy")) and "failure" not in accuracy["found"]:
        parts.append(accuracy_rows(accuracy["found"]))
    if reduced := load_result("gpu-bfloat16"):
        parts += ["In bfloat16:", steps_tables(reduced["found"])]
    if (batches := load_result("gpu-batches")) and "failure" not in batches["found"]:
        parts.append(batches_of(batches["found"]))
    if tries := load_result("gpu-tries"):
        rows = [
            [f"`{name}`", found.get("failure") or f"{found['step_ms']['median']:.3f} ms a step"]
            for name, found in tries["found"].items()
        ]
        parts.append(markdown_table(["setting", "found"], rows))
    return "\n\n".join(parts)


TABLES: Tables = {
    "cpu": cpu_table,
    "batches": batches_table,
    "profile": profile_table,
    "precision": precision_table,
    "accuracy": accuracy_table,
    "gpu": gpu_table,
}
