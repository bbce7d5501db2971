"""What a training run shows on the screen."""

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from recipe.networks import Conv, Network

console = Console(highlight=False)


def show_layers(network: Network) -> None:
    """Print every layer with its output shape and parameter count."""
    table = Table(title=network.name)
    table.add_column("layer")
    table.add_column("what")
    table.add_column("output (C, H, W)", justify="right")
    table.add_column("parameters", justify="right")
    for layer in network.layers:
        operation = layer.operation
        what = type(operation).__name__
        if isinstance(operation, Conv):
            side, pad = operation.kernel, f" pad {operation.pad}" if operation.pad else ""
            what = f"{what} {side}x{side}{pad}, {layer.in_shape[0]} -> {operation.channels}"
        shape = ", ".join(str(size) for size in layer.out_shape)
        table.add_row(layer.name, what, shape, f"{layer.parameter_count:,}")
    table.add_section()
    table.add_row("total", "no fully connected layer", "", f"{network.parameter_count:,}")
    console.print(table)


def show_notice(message: str) -> None:
    """Print something that a person must not overlook."""
    console.print(message, style="bold yellow", markup=False, soft_wrap=True)


def epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    """One aligned line on one epoch."""
    return (
        f"epoch {metrics['epoch']:3d}/{epochs}  lr {metrics['lr']:.5f}  "
        f"train loss {metrics['train_loss']:.4f} accuracy {100 * metrics['train_accuracy']:6.2f} %  "
        f"val loss {metrics['val_loss']:.4f} accuracy {100 * metrics['val_accuracy']:6.2f} %  "
        f"{metrics['seconds']:6.1f} s"
    )


def show_line(message: str) -> None:
    """Print one line, however long, above a progress bar that is running."""
    console.print(message, markup=False, soft_wrap=True)


def make_progress() -> Progress:
    """A progress bar in steps; it shows on a terminal only."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def summary(metrics: list[dict[str, Any]], parameters: int, data: str) -> str:
    """The closing lines: final and best validation accuracy, parameters, seconds."""
    final, best = metrics[-1], max(metrics, key=lambda entry: entry["val_accuracy"])
    seconds = sum(entry["seconds"] for entry in metrics)
    return (
        f"final validation accuracy {100 * final['val_accuracy']:.2f} % (epoch {final['epoch']}, {data})\n"
        f"best  validation accuracy {100 * best['val_accuracy']:.2f} % (epoch {best['epoch']})\n"
        f"parameters {parameters:,}   training time {seconds:.1f} s"
    )
