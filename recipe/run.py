"""A training run from options to run folder; a framework only supplies a `Trainer`."""

import dataclasses
import platform
import reprlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recipe import data, report
from recipe.chance import initial_weights
from recipe.checkpoint import Checkpoint, Tensors, load_checkpoint, tensor_shapes
from recipe.data import Split
from recipe.errors import UserError
from recipe.folder import RunFolder, is_own, open_folder
from recipe.networks import Network, get_network
from recipe.options import PRECISIONS, TrainOptions
from recipe.plan import Plan, make_plan, steps_per_epoch
from recipe.recipes import Recipe

# What two runs must have in common for one to go on where the other stopped.
RESUME_KEYS = ("network", "recipe", "seed", "precision", "split", "data")
MISSING = "(nothing)"  # in the place of a setting that one of two runs lacks
MAX_STEPS = (
    4_000_000  # of which a checkpoint, which holds every step's loss, stays a file that is read at once
)


class Trainer(Protocol):
    """One framework's model, optimizer and data on one device."""

    device: str

    def load(self, tensors: Tensors) -> None:
        """Take over parameters, statistics, momentum and average, by canonical name."""

    def tensors(self) -> Tensors:
        """All of the above as they are now."""
        ...

    def train(self, plan: Plan, done: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; ``done(n)`` says that n more are finished.

        Returns:
            Loss (float64) and number of correct predictions (int) of every step, before its update.
        """
        ...

    def gradients(self) -> Tensors:
        """The gradients of the last step, by canonical name."""
        ...

    def predict(self) -> np.ndarray:
        """Logits (N, 10) of the validation images, by the averaged weights if there are any."""
        ...

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy (0 to 1) on the validation images, from `predict`'s logits."""
        ...


@dataclass(frozen=True)
class Framework:
    """What a training program consists of."""

    name: str
    packages: tuple[str, ...]  # whose versions the config records
    trainer: Callable[[Network, Recipe, Split, str, str], Trainer]
    read_mnist: data.Reader


def initial_tensors(network: Network, recipe: Recipe, seed: int, precision: str) -> Tensors:
    """The state before the first step, in the type of the precision's weights."""
    dtype, _ = PRECISIONS[precision]
    weights = initial_weights(network, seed)
    shapes = tensor_shapes(network, averaged=recipe.ema is not None)
    start = {
        name: np.zeros(shape) if name.startswith("momentum/") else weights[name.removeprefix("average/")]
        for name, shape in shapes.items()
    }
    return {name: tensor.astype(dtype) for name, tensor in start.items()}


def train(options: TrainOptions, framework: Framework) -> None:
    """Train as the options say and leave a run folder.

    Raises:
        UserError: bad options, data, checkpoint or folder, or a loss that is not finite.
        KeyboardInterrupt: after saying what was kept.
    """
    options.validate()
    network, recipe = get_network(options.network), options.resolved_recipe()
    loaded = data.load(options.dataset, options.data_dir, framework.read_mnist)
    split = data.split(loaded.dataset, options.split)
    per_epoch = steps_per_epoch(recipe, len(split.train_images))
    if per_epoch == 0:
        raise UserError(f"--batch {recipe.batch} is more than the {len(split.train_images)} training images")
    config = _config(options, recipe, loaded, framework)
    start = go_on_from(options.resume, config) if options.resume else None
    total = per_epoch * recipe.epochs
    if total > MAX_STEPS:
        raise UserError(
            f"{total:,} steps are more than {MAX_STEPS:,}; give fewer --epochs or a larger --batch"
        )
    last = min(total, options.max_steps or total)
    out = options.out or Path("runs") / f"{framework.name}-{network.name}-{recipe.name}-{options.seed}"
    if start and start.step >= last:
        _complete(start, options.resume, out, last)
        return
    trainer = framework.trainer(network, recipe, split, options.device, options.precision)
    config["device"] = trainer.device
    with open_folder(out, options.resume) as folder, _interruption_reported(folder):
        if start and options.resume and load_checkpoint(options.resume).step != start.step:
            raise UserError(f"another run has just gone on from {options.resume}; start again")
        folder.save_config(config)
        report.show_layers(network)
        if loaded.note:
            report.show_notice(loaded.note)
        report.show_line(
            f"{framework.name} on {trainer.device}, {loaded.dataset.name}, {recipe.name}, "
            f"{options.precision}, seed {options.seed}"
        )
        report.show_line(f"{recipe.epochs} epochs of {per_epoch} steps of {recipe.batch} images -> {out}")
        if start is None:
            tensors = initial_tensors(network, recipe, options.seed, options.precision)
            start = Checkpoint(0, tensors, np.empty(0), [], config)
        state = dataclasses.replace(start, config=config)
        trainer.load(state.tensors)
        state = _epochs(trainer, recipe, len(split.train_images), state, last, folder)
        folder.save_curves(state)
        report.show_line(report.summary(state.metrics, network.parameter_count, loaded.dataset.name))


def _epochs(
    trainer: Trainer, recipe: Recipe, images: int, state: Checkpoint, last: int, folder: RunFolder
) -> Checkpoint:
    """Train from a state to step ``last``, saving after every epoch."""
    per_epoch = steps_per_epoch(recipe, images)
    with report.make_progress() as progress:
        task = progress.add_task("training", total=last, completed=state.step)
        while state.step < last:
            stop = min(last, (state.step // per_epoch + 1) * per_epoch)
            plan = make_plan(state.network, recipe, state.config["seed"], images, state.step, stop)
            began = time.perf_counter()
            losses, correct = trainer.train(plan, lambda steps: progress.advance(task, steps))
            seconds = time.perf_counter() - began
            _check_finite(losses, plan, state, folder)
            val_loss, val_accuracy = trainer.evaluate()
            entry = {
                "epoch": (stop - 1) // per_epoch + 1,
                "step": stop,
                "lr": float(plan.rates[-1]),
                "train_loss": float(losses.mean()),
                "train_accuracy": float(correct.sum() / plan.images.size),
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "seconds": seconds,
            }
            state = Checkpoint(
                stop,
                trainer.tensors(),
                np.concatenate([state.losses, losses]),
                [*state.metrics, entry],
                state.config,
            )
            folder.save(state)
            report.show_line(report.epoch_line(entry, recipe.epochs))
    return state


@contextmanager
def _interruption_reported(folder: RunFolder) -> Iterator[None]:
    """Where Ctrl-C ends a run, complete its folder from the checkpoint and say what was kept."""
    try:
        yield
    except KeyboardInterrupt:
        if not folder.checkpoint.exists():
            report.show_notice("interrupted; kept: nothing, in the first epoch")
            raise
        state = load_checkpoint(folder.checkpoint)  # a save may have been under way
        folder.complete(state)
        report.show_notice(f"interrupted; kept: {folder.checkpoint} at step {state.step}")
        raise


def _check_finite(losses: np.ndarray, plan: Plan, state: Checkpoint, folder: RunFolder) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        kept = (
            f"the last good checkpoint is {folder.checkpoint} (step {state.step})"
            if state.step
            else "there is no checkpoint yet"
        )
        raise UserError(
            f"the loss is {losses[bad[0]]} at step {state.step + bad[0]}, learning rate "
            f"{plan.rates[bad[0]]:g}; {kept}; use another recipe, batch or seed"
        )


def _complete(finished: Checkpoint, resume: Path | None, out: Path, last: int) -> None:
    """Where a run was killed after its last checkpoint, write the files that it did not come to.

    Raises:
        UserError: there is nothing to do, since the run is whole, elsewhere or further on.
    """
    if finished.step == last and is_own(out, resume):
        with open_folder(out, resume) as folder:
            if folder.complete(finished):
                report.show_notice(f"the run had reached its last step; completed the files in {out}")
                return
    raise UserError(f"{resume} is at step {finished.step} already, and the run ends at {last}")


def go_on_from(path: Path, config: dict[str, Any]) -> Checkpoint:
    """The checkpoint to go on from, if it is of the same run."""
    checkpoint = load_checkpoint(path)
    for key in RESUME_KEYS:
        theirs, ours = checkpoint.config.get(key), config[key]
        if theirs == ours:
            continue
        if isinstance(theirs, dict) and isinstance(ours, dict):
            part = next(
                part for part in ours | theirs if theirs.get(part, MISSING) != ours.get(part, MISSING)
            )
            key, theirs, ours = f"{key}.{part}", theirs.get(part, MISSING), ours.get(part, MISSING)
        raise UserError(
            f"{path} is of a run with {key} {_short(theirs)}, this one has {_short(ours)}; "
            "give the same options"
        )
    if not checkpoint.has_whole_metrics():
        raise UserError(f"{path} lacks the metrics of its epochs; use another checkpoint")
    return checkpoint


def _short(value: object) -> str:
    """A value from a file, in a message: text as it is unless it is long."""
    return value if isinstance(value, str) and len(value) <= 100 else reprlib.repr(value)


def _config(
    options: TrainOptions, recipe: Recipe, loaded: data.Loaded, framework: Framework
) -> dict[str, Any]:
    """Everything resolved, for ``config.json``."""
    return {
        "framework": framework.name,
        "network": options.network,
        "recipe": dataclasses.asdict(recipe),
        "seed": options.seed,
        "precision": options.precision,
        "split": options.split,
        "data": {"name": loaded.dataset.name, "fingerprint": loaded.dataset.fingerprint},
        "data_note": loaded.note,
        "max_steps": options.max_steps,
        "resumed_from": str(options.resume) if options.resume else None,
        "command": " ".join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {platform.system()}",
        "versions": {package: version(package) for package in framework.packages},
    }


def git_commit() -> str | None:
    """The commit of the checkout this file is in, with ``+`` where it has changes; None without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    here = Path(__file__).parent
    try:
        answer = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
