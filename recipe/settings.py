"""The settings that decide a run's numbers, from the command line or, to resume, from a checkpoint."""

import reprlib
from dataclasses import asdict, dataclass, replace
from typing import Any

from recipe.checkpoint import Checkpoint
from recipe.errors import UserError
from recipe.networks import Network, get_network
from recipe.options import MAX_BATCH, MAX_EPOCHS, MAX_SEED, TrainOptions
from recipe.recipes import PRECISIONS, Recipe, get_recipe


@dataclass(frozen=True)
class Settings:
    """Two runs with equal settings do the same, in either framework."""

    network: Network
    recipe: Recipe
    seed: int
    precision: str
    split: str
    dataset: str  # auto, mnist or digits

    @property
    def config(self) -> dict[str, Any]:
        """The settings for ``config.json``, except the data."""
        return {
            "network": self.network.name,
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "precision": self.precision,
            "split": self.split,
        }


def settings_of_options(options: TrainOptions) -> Settings:
    """The settings of a new run.

    Raises:
        UserError: there is no such network or recipe.
    """
    network = get_network(options.network or "net10040")
    recipe = get_recipe(network.name, options.recipe or "tuned")
    return Settings(
        network=network,
        recipe=replace(recipe, epochs=options.epochs or recipe.epochs, batch=options.batch or recipe.batch),
        seed=options.seed or 0,
        precision=options.precision or "float32",
        split=options.split or "test",
        dataset=options.dataset,
    )


def settings_of_checkpoint(checkpoint: Checkpoint, name: str) -> Settings:
    """The settings of the run that wrote a checkpoint.

    Args:
        checkpoint: of the run.
        name: of its file, for messages.

    Raises:
        UserError: a setting is missing, or this version does not have it.
    """
    checkpoint.check_config("recipe.name", "seed", "precision", "split", "data.name", "data.fingerprint")
    config = checkpoint.config
    stored = config["recipe"]
    recipe = get_recipe(checkpoint.network.name, stored["name"])
    for key, high in {"epochs": MAX_EPOCHS, "batch": MAX_BATCH}.items():
        if type(stored.get(key)) is int and 1 <= stored[key] <= high:
            recipe = replace(recipe, **{key: stored[key]})
    ours = asdict(recipe)
    for key in ours | stored:
        theirs, this = stored.get(key, "(nothing)"), ours.get(key, "(nothing)")
        if theirs != this:
            raise UserError(
                f"{name} is of a run with recipe.{key} {shorten(theirs)}; in this version {recipe.name} has "
                f"{shorten(this)}; train anew"
            )
    for key, choices in {
        "precision": tuple(PRECISIONS),
        "split": ("test", "holdout"),
        "data.name": ("mnist", "digits"),
    }.items():
        value = config["data"]["name"] if key == "data.name" else config[key]
        if value not in choices:
            raise UserError(f"{name} is of a run with {key} {shorten(value)}; known: {', '.join(choices)}")
    if not 0 <= config["seed"] <= MAX_SEED:
        raise UserError(f"{name} is of a run with seed {config['seed']}, which is out of range")
    return Settings(
        checkpoint.network,
        recipe,
        config["seed"],
        config["precision"],
        config["split"],
        config["data"]["name"],
    )


def check_options(options: TrainOptions, settings: Settings, name: str) -> None:
    """Refuse options that contradict the run that goes on.

    Raises:
        UserError: naming all of them.
    """
    run = {
        "--network": (options.network and get_network(options.network).name, settings.network.name),
        "--recipe": (options.recipe, settings.recipe.name),
        "--epochs": (options.epochs, settings.recipe.epochs),
        "--batch": (options.batch, settings.recipe.batch),
        "--seed": (options.seed, settings.seed),
        "--precision": (options.precision, settings.precision),
        "--split": (options.split, settings.split),
        "--dataset": (None if options.dataset == "auto" else options.dataset, settings.dataset),
    }
    wrong = {flag: pair for flag, pair in run.items() if pair[0] is not None and pair[0] != pair[1]}
    if wrong:
        theirs = ", ".join(f"{flag} {stored}" for flag, (_, stored) in wrong.items())
        raise UserError(f"{name} is of a run with {theirs}; leave out {', '.join(wrong)}")


def shorten(value: object) -> str:
    """A value from a file, in a message: text as it is unless it is long."""
    return value if isinstance(value, str) and len(value) <= 100 else reprlib.repr(value)
