"""What the commands show on the screen."""

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
    dropped. Characters that its encoding does not have are escaped.
    """

    @property
    def stream(self) -> IO[str] | None:
        """Standard output as it is now; None if the program was started without one."""
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # under a progress bar's own stream

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return True if standard output is a terminal."""
        with suppress(ValueError):  # closed
            return self.stream is not None and self.stream.isatty()
        return False

    def fileno(self) -> int:
        """The stream's descriptor, from which its width is read."""
        if self.stream is None:
            raise OSError("there is no standard output")
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Write the text, or drop it if standard output is gone."""
        if self.stream is not None:
            try:
                self.stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except (OSError, ValueError) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush, unless standard output is gone."""
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
    """Connect a broken stream to the null device; otherwise Python would fail once more when it exits."""
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
            what += f", weights of {layer.owner}" if layer.owner != layer.name else ""
        shape = ", ".join(str(size) for size in layer.out_shape)
        table.add_row(layer.name, what, shape, f"{layer.parameter_count:,}")
    table.add_section()
    table.add_row("total", "no fully connected layer", "", f"{network.parameter_count:,}")
    console.print(table)


def show_notice(message: str) -> None:
    """Print something that a person must not overlook."""
    console.print(message, style="bold yellow", markup=False, soft_wrap=True)


EPOCH_HEADER = "  epoch       lr   train loss  accuracy     val loss  accuracy   seconds"


def epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    """One line on one epoch, aligned under `EPOCH_HEADER`: at most 80 columns."""
    return (
        f"{metrics['epoch']:>3}/{epochs:<3}  {metrics['lr']:7.5f}"
        f"  {metrics['train_loss']:11.4f}  {100 * metrics['train_accuracy']:6.2f} %"
        f"  {metrics['val_loss']:11.4f}  {100 * metrics['val_accuracy']:6.2f} %  {metrics['seconds']:8.1f}"
    )


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 epoch", "2,000 epochs"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


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
        speed_estimate_period=3600,  # a framework may finish a whole epoch at once
        disable=not console.is_terminal,
    )


def summary(metrics: list[dict[str, Any]], parameters: int, data: str, compile_seconds: float) -> str:
    """The closing lines of a run: final and best validation accuracy, parameters, seconds, digest."""
    compilation = f", and {compile_seconds:.1f} s to compile" if compile_seconds >= 0.05 else ""
    final, best = metrics[-1], max(metrics, key=lambda entry: entry["val_accuracy"])
    seconds = sum(entry["seconds"] for entry in metrics)
    return (
        f"final validation accuracy {100 * final['val_accuracy']:.2f} % (epoch {final['epoch']}, {data})\n"
        f"best  validation accuracy {100 * best['val_accuracy']:.2f} % (epoch {best['epoch']})\n"
        f"parameters {parameters:,}   training time {seconds:.1f} s{compilation}\n"
        f"SHA-256 of the state {final['digest']}"
    )
