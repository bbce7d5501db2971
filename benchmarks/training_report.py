"""The training benchmark's figures as tables and as a picture."""

from typing import Any

from rich.table import Table

from benchmarks.training_contenders import LABELS
from recipe import report
from recipe.curves import encode_png


def show_steps(network: str, found: dict[str, Any]) -> None:
    """Print the comparison of one network."""
    batch = found["recipe"]["batch"]
    table = Table(title=f"{network}, {found['recipe']['name']}, batch {batch}")
    for heading in ("", "ms a step", "range", "x limit", "images/s", "epoch s", "compile s"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, figures in found["contenders"].items():
        step = figures["step_ms"]
        epoch = figures["epoch_s"]
        table.add_row(
            LABELS[name],
            f"{step['median']:.2f}",
            f"{step['min']:.4g}-{step['max']:.4g}",
            f"{figures['times_limit']:.1f}",
            f"{figures['images_per_second']:,.0f}",
            "-" if epoch is None else f"{epoch:.2f}",
            f"{figures['compile_s']:.1f}",
        )
    rate = found["matrix_flops_per_second"]["median"]
    table.add_row("limit", f"{found['limit_ms']:.2f}", "", "1.0")
    report.console.print(table)
    report.show_line(
        f"limit: {found['step_flops'] / 1e9:.3g} GFLOP a step at a matrix product's {rate / 1e9:,.0f} GFLOP/s"
    )
    words = {
        "torch": "PyTorch against its script",
        "jax": "Flax against its script",
        "jax_over_torch": "Flax's step over PyTorch's",
    }
    for name, ratio in found["speedups"].items():
        spread = f"({ratio['lowest']:.2f} - {ratio['highest']:.2f})"
        report.show_line(f"{words[name]}: {ratio['median']:.2f}x {spread}")


def show_batches(found: dict[str, dict[str, Any]]) -> None:
    """Print time per image and memory by batch size."""
    table = Table(title="batch sizes")
    for heading in ("", "batch", "us an image", "ms a step", "peak MiB", "before training"):
        table.add_column(heading, justify="right" if heading else "left")
    for kind, sizes in found.items():
        for batch, figures in sizes.items():
            where = "gpu_mib" if "gpu_mib" in figures["peak_memory"] else "process_mib"
            table.add_row(
                LABELS[kind],
                batch,
                f"{figures['us_per_image']:.1f}",
                f"{figures['step_ms']:.2f}",
                f"{figures['peak_memory'][where]:,.0f}",
                f"{figures['memory_before_training'][where]:,.0f}",
            )
    report.console.print(table)


def show_time_to_target(found: dict[str, Any]) -> None:
    """Print how long 99.4 % took."""
    for kind in found.keys() - {"recipe"}:
        for figures in found[kind]:
            reached = "99.4 % reached" if figures["reached"] else "99.4 % not reached"
            best = 100 * max(figures["accuracies"])
            report.show_line(
                f"{LABELS[kind]}: {reached} (best {best:.2f} %), {figures['seconds']:.1f} s of training, "
                f"{figures['epochs']} of {figures['of']} epochs"
            )


def draw(result: dict[str, Any]) -> bytes:
    """Step times of each network beside the limit, and time per image by batch size, as PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    networks, batches = result["networks"], result.get("batch_sizes")
    panels = len(networks) + bool(batches)
    figure, grid = pyplot.subplots(1, panels, figsize=(5 * panels, 3.2), layout="constrained", squeeze=False)
    for axes, (network, found) in zip(grid[0], networks.items(), strict=False):
        names = list(found["contenders"])[::-1]
        steps = [found["contenders"][name]["step_ms"] for name in names]
        medians = [step["median"] for step in steps]
        below = [step["median"] - step["min"] for step in steps]
        above = [step["max"] - step["median"] for step in steps]
        colours = ["0.7" if name.endswith("script") else "C0" for name in names]
        bars = axes.barh([LABELS[name] for name in names], medians, color=colours, xerr=[below, above])
        axes.bar_label(bars, [f"{median:.1f}" for median in medians], padding=4)
        axes.axvline(found["limit_ms"], color="C3", ls="--", lw=1, label="arithmetic limit")
        axes.margins(x=0.15)
        axes.set(xlabel="ms a step", title=f"{network}, batch {found['recipe']['batch']}")
        axes.legend(loc="lower right")
    if batches:
        axes = grid[0, -1]
        for kind, sizes in batches.items():
            times = [figures["us_per_image"] for figures in sizes.values()]
            axes.plot([int(batch) for batch in sizes], times, "o-", label=LABELS[kind])
        axes.set(xscale="log", xlabel="batch size", ylabel="microseconds an image", ylim=(0, None))
        sizes = sorted({int(batch) for each in batches.values() for batch in each})
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.minorticks_off()
        axes.legend()
    return encode_png(figure)
