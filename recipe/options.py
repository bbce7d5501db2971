"""The command line that both training programs share."""

import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from recipe import report, signals
from recipe.errors import UserError
from recipe.networks import NETWORKS
from recipe.recipes import RECIPES, Recipe, get_recipe

MAX_EPOCHS, MAX_BATCH = 1000, 10_000

# --precision: the types of weights, statistics, optimizer and loss, and of what lies between the layers.
PRECISIONS = {
    "float32": ("float32", "float32"),
    "float64": ("float64", "float64"),
    "bfloat16": ("float32", "bfloat16"),
}

OptionsT = TypeVar("OptionsT")


def choice(*names: str) -> object:
    """Show a string option's choices in the help; `check_choice` checks them."""
    return tyro.conf.arg(metavar="|".join(names))


def optional(metavar: str) -> object:
    """Show an option without a default by the kind of its value."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def check_choice(option: str, value: str, *names: str) -> None:
    """Refuse what is not among the choices.

    Raises:
        UserError: naming the option and its choices.
    """
    if value not in names:
        raise UserError(f"{option} {value!r} is unknown; choose one of: {', '.join(names)}")


@dataclass(frozen=True)
class TrainOptions:
    """Train one network by one recipe. The same flags and files in both frameworks."""

    network: Annotated[str, choice(*NETWORKS)] = "net10040"
    """Which network."""
    recipe: Annotated[str, choice(*RECIPES)] = "tuned"
    """Which hyperparameters."""
    epochs: Annotated[int | None, optional("INT")] = None
    """Length of the schedule (the recipe's own if not given)."""
    batch: Annotated[int | None, optional("INT")] = None
    """Images per step (the recipe's own if not given)."""
    seed: int = 0
    """Of initial weights, image order, augmentation and dropout."""
    dataset: Annotated[str, choice("auto", "mnist", "digits")] = "auto"
    """auto: MNIST if it can be had, else scikit-learn's digits."""
    data_dir: Annotated[Path | None, optional("DIR")] = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    split: Annotated[str, choice("test", "holdout")] = "test"
    """Validate on the test images or on the last training images."""
    device: Annotated[str, choice("auto", "cpu", "cuda")] = "auto"
    """auto: the GPU if there is one."""
    precision: Annotated[str, choice(*PRECISIONS)] = "float32"
    """Of weights and arithmetic; bfloat16 is for the arithmetic only."""
    max_steps: Annotated[int | None, optional("INT")] = None
    """Stop after this step of the schedule, evaluate and save."""
    out: Annotated[Path | None, optional("DIR")] = None
    """Run folder [runs/FRAMEWORK-NETWORK-RECIPE-SEED]."""
    resume: Annotated[Path | None, optional("CHECKPOINT")] = None
    """Go on from a checkpoint of either framework."""

    def validate(self) -> None:
        """Check every option that needs no file.

        Raises:
            UserError: naming the first faulty option.
        """
        check_choice("--network", self.network, *NETWORKS)
        check_choice("--recipe", self.recipe, *RECIPES)
        check_choice("--dataset", self.dataset, "auto", "mnist", "digits")
        check_choice("--split", self.split, "test", "holdout")
        check_choice("--device", self.device, "auto", "cpu", "cuda")
        check_choice("--precision", self.precision, *PRECISIONS)
        check_range("--epochs", self.epochs, 1, MAX_EPOCHS)
        check_range("--batch", self.batch, 1, MAX_BATCH)
        check_range("--seed", self.seed, 0, 2**63 - 1)
        check_range("--max-steps", self.max_steps, 1, 10**9)

    def resolved_recipe(self) -> Recipe:
        """The recipe with the command line's changes."""
        recipe = get_recipe(self.network, self.recipe)
        return replace(recipe, epochs=self.epochs or recipe.epochs, batch=self.batch or recipe.batch)


def check_range(option: str, value: int | None, low: int, high: int) -> None:
    """Refuse a number that is out of range.

    Raises:
        UserError: naming the option and its range.
    """
    if value is not None and not low <= value <= high:
        raise UserError(f"{option} {value} is out of range; give {low} to {high}")


def _parse(options_type: type[OptionsT], program: str) -> OptionsT:
    """The options on the command line; tyro's own errors, boxes of several lines, become a `UserError`."""
    errors = io.StringIO()
    try:
        with redirect_stderr(errors):
            return tyro.cli(options_type, prog=program)
    except SystemExit as end:
        if not end.code:  # --help
            report.screen.flush()  # here, where a reader that is gone is no error
            raise
    except BrokenPipeError:  # nobody reads the help
        report.screen.flush()
        sys.exit(0)
    except (AssertionError, IndexError, OSError) as error:  # of its own option --tyro-write-completion
        raise UserError(f"{error}; see {program} --help") from None
    raise UserError(f"{_unbox(errors.getvalue())}; see {program} --help")


def _unbox(text: str) -> str:
    """The first paragraph in one of tyro's boxes, coloured on a terminal and dashed without UTF-8."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[1:]]
    below_title = dropwhile(_is_rule, lines)
    return " ".join(takewhile(lambda line: not _is_rule(line), below_title)).rstrip(".")


def _is_rule(line: str) -> bool:
    """Whether a line of a box has no text."""
    return not line.strip("─-╰╯")


def run_command(options_type: type[OptionsT], main: Callable[[OptionsT], None], program: str) -> None:
    """Parse the command line, run, and exit with a code that says how it ended.

    2 after a `UserError`, which becomes one line on stderr; 128 + signal after Ctrl-C, SIGTERM and SIGHUP.
    """
    try:
        with signals.heeded():
            main(_parse(options_type, program))
    except UserError as error:
        report.show_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        sys.exit(signals.exit_code(interruption))
