"""The command line that both training programs share."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from recipe.errors import UserError
from recipe.networks import NETWORKS
from recipe.recipes import RECIPES, Recipe, get_recipe

MAX_EPOCHS, MAX_BATCH = 1000, 10_000

OptionsT = TypeVar("OptionsT")


def choice(*names: str) -> object:
    """Show a string option's choices in the help; `check_choice` checks them."""
    return tyro.conf.arg(metavar="|".join(names))


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
    epochs: int | None = None
    """Length of the schedule (the recipe's own if not given)."""
    batch: int | None = None
    """Images per step (the recipe's own if not given)."""
    seed: int = 0
    """Of initial weights, image order, augmentation and dropout."""
    dataset: Annotated[str, choice("auto", "mnist", "digits")] = "auto"
    """auto: MNIST if it can be had, else scikit-learn's digits."""
    data_dir: Path | None = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    split: Annotated[str, choice("test", "holdout")] = "test"
    """Validate on the test images or on the last training images."""
    device: Annotated[str, choice("auto", "cpu", "cuda")] = "auto"
    """auto: the GPU if there is one."""
    precision: Annotated[str, choice("float32", "float64")] = "float32"
    """Of weights and arithmetic."""
    max_steps: int | None = None
    """Stop after this step of the schedule, evaluate and save."""
    out: Path | None = None
    """Run folder [runs/FRAMEWORK-NETWORK-RECIPE-SEED]."""
    resume: Path | None = None
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
        check_choice("--precision", self.precision, "float32", "float64")
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


def run_command(options_type: type[OptionsT], main: Callable[[OptionsT], None], program: str) -> None:
    """Parse the command line, run, and turn a `UserError` into one line on stderr and exit code 2."""
    options = tyro.cli(options_type, prog=program, config=(tyro.conf.OmitArgPrefixes,))
    try:
        main(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
