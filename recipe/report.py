"""What a training run shows on the screen."""

import os
import sys
from contextlib import suppress
from typing import IO, Any, cast

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

from recipe.errors import one_line
from recipe.networks import Conv, Network


class Screen:
    """Standard output for as long as there is one: a run must not end because its terminal did.

    Where writing fails (terminal or pipe closed, disk full), one line on stderr says so and the rest is
    dropped. What the output's encoding lacks is escaped.
    """

    @property
    def stream(self) -> IO[str] | None:
        """Where it goes now; None where the program was started without."""
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # what a progress bar puts in front

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether somebody sits there."""
        with suppress(ValueError):  # closed
            return self.stream is not None and self.stream.isatty()
        return False

    def fileno(self) -> int:
        """The stream's, for its width."""
        if self.stream is None:
            raise OSError("there is no standard output")
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Write, if anything takes it."""
        if self.stream is not None:
            try:
                self.stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush, if anything takes it."""
        if self.stream is not None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        _divert(self.stream)
        reason = getattr(error, "strerror", None) or error
        _complain(f"standard output takes no more ({reason}); going on without it")


def _divert(stream: IO[str] | None) -> None:
    """Send what is and will be written to a stream nowhere, or it would fail again, at the latest at exit."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, cast(IO[str], stream).fileno())
        os.close(nowhere)


def _complain(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _divert(sys.stderr)


def show_error(message: str) -> None:
    """Print the one line on stderr that a program ends with."""
    _complain(f"error: {one_line(message)}")


screen = Screen()
console = Console(file=cast(IO[str], screen), highlight=False)


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
