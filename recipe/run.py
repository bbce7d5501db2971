"""A training run from options to run folder; a framework only supplies a `Trainer`."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recipe import checkpoint as checkpoints
from recipe import data, record, report
from recipe.checkpoint import Checkpoint, Tensors, initial_tensors, load_checkpoint
from recipe.data import Split
from recipe.errors import UserError
from recipe.folder import RunFolder, is_own, open_folder
from recipe.networks import Network, Norm
from recipe.options import TrainOptions
from recipe.plan import Plan, make_plans, steps_per_epoch
from recipe.recipes import Recipe
from recipe.settings import Settings, check_options, settings_of_checkpoint, settings_of_options, shorten

# A checkpoint holds the loss of every step. With more steps it would be too large to read at once.
MAX_STEPS = 4_000_000


class Trainer(Protocol):
    """One framework's model, optimizer and data on one device."""

    device_name: str
    threads: int  # that it computes with, on a CPU

    def load(self, tensors: Tensors) -> None:
        """Set parameters, statistics, momentum and average, by canonical name."""

    def tensors(self) -> Tensors:
        """All of these as they are now."""
        ...

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; ``advance(n)`` reports that n more are finished.

        The first call of ``advance``, maybe with n = 0, comes when everything is compiled.

        Returns:
            Loss (float64) and number of correct predictions (int) of every step, before its update.
        """
        ...

    def predict(self) -> np.ndarray:
        """Logits (N, 10) of the validation images, by the averaged weights if there are any."""
        ...

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy (0 to 1) on the validation images, from the same logits."""
        ...


@dataclass(frozen=True)
class Framework:
    """What a training program needs from a framework."""

    name: str
    packages: tuple[str, ...]  # the config records their versions
    trainer: Callable[[Network, Recipe, Split, str, str], Trainer]
    read_mnist: data.Reader


@dataclass(frozen=True)
class Run:
    """A run that is ready to start or to go on."""

    settings: Settings
    loaded: data.Loaded
    split: Split
    last: int  # the step to stop after
    out: Path
    resume: Path | None  # the checkpoint to go on from
    start: Checkpoint | None  # its content

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one epoch."""
        return steps_per_epoch(self.settings.recipe, len(self.split.train_images))

    @property
    def checkpoint(self) -> Path | None:
        """What to go on from: the run's own checkpoint or, until that is there, the one it resumed."""
        own = self.out / checkpoints.FILE_NAME
        return own if own.exists() else self.resume

    @property
    def kept(self) -> str:
        """What is kept if the run ends, in words."""
        path = self.checkpoint
        if path is None:
            return "kept: nothing, in the first epoch"
        run = path.parent if path.name == checkpoints.FILE_NAME else path
        return f"kept: {path} at step {load_checkpoint(path).step}; go on with --resume {run}"

    def plans(self) -> Iterator[Plan]:
        """The plans from the run's first step, or from where it goes on, to its last."""
        settings, first = self.settings, self.start.step if self.start else 0
        images = len(self.split.train_images)
        return make_plans(settings.network, settings.recipe, settings.seed, images, first, self.last)


def train(options: TrainOptions, framework: Framework, follow: bool = False) -> None:
    """Train as the options say and leave a run folder.

    Args:
        options: of the command line.
        framework: to train in.
        follow: in a process that only computes, beside the one that writes and reports.

    Raises:
        UserError: bad options, data, checkpoint or folder, a loss that is not finite, or a lost device.
        KeyboardInterrupt: after a line that says what was kept.
    """
    run = prepare(options, framework)
    if run.start and run.start.step >= run.last:
        if not follow:
            _finish(run, run.start)
        return
    settings = run.settings
    trainer = framework.trainer(
        settings.network, settings.recipe, run.split, options.device, settings.precision
    )
    if run.start:
        tensors = run.start.tensors
    else:
        tensors = initial_tensors(settings.network, settings.recipe, settings.seed, settings.precision)
    trainer.load(tensors)
    if follow:
        _follow(run, trainer)
        return
    config = _config(options, run, framework) | {
        "device": trainer.device_name,
        "threads": trainer.threads,
    }
    with open_folder(run.out, run.resume) as folder, _report_interruption(run, folder):
        if run.start and run.resume and load_checkpoint(run.resume).step != run.start.step:
            raise UserError(f"another run has just gone on from {run.resume}; start again")
        folder.save_config(config)
        _show_start(run, framework, trainer)
        if run.start:
            state = dataclasses.replace(run.start, config=config)
        else:
            state = Checkpoint(0, tensors, np.empty(0), [], config)
        state, compile_seconds = _train_epochs(run, trainer, state, folder)
        folder.save_curves(state)
        _show_summary(run, state, compile_seconds)


def prepare(options: TrainOptions, framework: Framework) -> Run:
    """Check the options, the data and the checkpoint to go on from, if there is one.

    Raises:
        UserError: something is wrong with any of them.
    """
    options.validate()
    resume = checkpoints.find_checkpoint(options.resume) if options.resume else None
    start = load_checkpoint(resume) if resume else None
    if start and resume:
        settings = settings_of_checkpoint(start, str(resume))
        check_options(options, settings, str(resume))
    else:
        settings = settings_of_options(options)
    loaded = data.load(settings.dataset, options.data_dir, framework.read_mnist)
    if start:
        _check_start(start, str(resume), loaded)
    split = data.split(loaded.dataset, settings.split)
    recipe, images = settings.recipe, len(split.train_images)
    per_epoch = steps_per_epoch(recipe, images)
    if per_epoch == 0:
        raise UserError(f"--batch {recipe.batch} is more than the {images} training images")
    if recipe.batch % (options.devices or 1):
        raise UserError(
            f"--devices {options.devices} does not divide the batch of {recipe.batch} images; "
            "choose another number, or a --batch that it divides"
        )
    maps = {layer.out_shape[1:] for layer in settings.network.layers if isinstance(layer.operation, Norm)}
    if recipe.batch == 1 and (1, 1) in maps:
        raise UserError("--batch 1 gives a batch norm one number a channel, which has no variance; give more")
    total = per_epoch * recipe.epochs
    if total > MAX_STEPS:
        raise UserError(
            f"{total:,} steps are more than {MAX_STEPS:,}; give fewer --epochs or a larger --batch"
        )
    last = min(total, options.max_steps or total)
    if start and last < start.step:
        raise UserError(f"--max-steps {last}: {resume} is at step {start.step} already; give more")
    if options.out:
        out = options.out
    elif resume and resume.name == checkpoints.FILE_NAME:
        out = resume.parent
    else:
        name = f"{framework.name}-{settings.network.label}-{recipe.name}-{settings.seed}"
        out = Path("runs") / name
    return Run(settings, loaded, split, last, out, resume, start)


def _check_start(start: Checkpoint, name: str, loaded: data.Loaded) -> None:
    theirs, ours = start.config["data"]["fingerprint"], loaded.dataset.fingerprint
    if theirs != ours:
        raise UserError(f"{name} was trained on other images: fingerprint {shorten(theirs)}, here {ours}")
    if len(start.losses) != start.step:
        raise UserError(
            f"{name} lacks the losses of its steps: it is a model to use, not a run to go on with"
        )
    if not start.has_whole_metrics():
        raise UserError(f"{name} lacks the metrics of its epochs; use another checkpoint")


def _finish(run: Run, state: Checkpoint) -> None:
    """Show the summary of a run that is finished; complete the files that a kill kept it from writing."""
    done = f"{run.resume} is finished: step {state.step} is its last; nothing was trained"
    if is_own(run.out, run.resume):
        with open_folder(run.out, run.resume) as folder:
            if folder.complete(state):
                report.show_notice(f"the run had reached its last step; completed the files in {run.out}")
    else:
        done += f", and {run.out} was not made"
    report.show_notice(done)
    _show_summary(run, state, 0.0)


def _follow(run: Run, trainer: Trainer) -> None:
    """Take the run's steps. If a device is lost or a loss is not finite, the process that reports says so."""
    with suppress(ConnectionError):
        for plan in run.plans():
            losses, _ = trainer.train(plan, lambda _: None)
            if not np.isfinite(losses).all():
                return


def _train_epochs(
    run: Run, trainer: Trainer, state: Checkpoint, folder: RunFolder
) -> tuple[Checkpoint, float]:
    """Train from a state to the run's last step; save after every epoch.

    Returns:
        The last state, and the seconds before the first step, in which the framework compiled.
    """
    settings, per_epoch = run.settings, run.steps_per_epoch
    compiled = 0.0  # when the first plan was compiled

    def advance(steps: int) -> None:
        nonlocal compiled
        compiled = compiled or time.perf_counter()
        progress.update(task, advance=steps, description="training")

    compile_seconds = 0.0
    with report.make_progress() as progress:
        task = progress.add_task("compiling", total=run.last, completed=state.step)
        for plan in run.plans():
            began, first = time.perf_counter(), not compiled
            losses, correct = trainer.train(plan, advance)
            if first:
                compile_seconds = compiled - began
            seconds = time.perf_counter() - began - first * compile_seconds
            _check_finite(losses, plan, state.step, run)
            val_loss, val_accuracy = trainer.evaluate()
            step = state.step + plan.steps
            entry = {
                "epoch": (step - 1) // per_epoch + 1,
                "step": step,
                "lr": float(plan.lr[-1]),
                "train_loss": float(losses.mean()),
                "train_accuracy": float(correct.sum() / plan.indices.size),
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "seconds": seconds,
                "digest": checkpoints.state_digest(tensors := trainer.tensors()),
            }
            state = Checkpoint(
                step,
                tensors,
                np.concatenate([state.losses, losses]),
                [*state.metrics, entry],
                state.config,
            )
            folder.save(state)
            report.show_line(report.epoch_line(entry, settings.recipe.epochs))
    return state, compile_seconds


def _show_start(run: Run, framework: Framework, trainer: Trainer) -> None:
    settings, recipe = run.settings, run.settings.recipe
    report.show_layers(settings.network)
    if run.loaded.note:
        report.show_notice(run.loaded.note)
    report.show_line(
        f"{framework.name} on {trainer.device_name}, {run.loaded.dataset.name}, {recipe.name}, "
        f"{settings.precision}, seed {settings.seed}"
    )
    report.show_line(
        f"{report.count(recipe.epochs, 'epoch')} of {report.count(run.steps_per_epoch, 'step')} "
        f"of {report.count(recipe.batch, 'image')} -> {run.out}"
    )
    if run.start:
        report.show_line(f"going on after step {run.start.step:,}")
    if run.last < run.steps_per_epoch * recipe.epochs:
        report.show_line(f"stopping after step {run.last:,}")
    report.show_line("compiling the network, which takes up to a minute")
    report.show_line(report.EPOCH_HEADER)


def _show_summary(run: Run, state: Checkpoint, compile_seconds: float) -> None:
    parameters, dataset = run.settings.network.parameter_count, run.loaded.dataset.name
    report.show_line(report.summary(state.metrics, parameters, dataset, compile_seconds))


@contextmanager
def _report_interruption(run: Run, folder: RunFolder) -> Iterator[None]:
    """If Ctrl-C ends a run, complete its folder from the checkpoint and say what was kept.

    If the run loses a device, say so at once: torchrun then tells this process to end, too.
    """
    try:
        try:
            yield
        except ConnectionError:
            raise UserError(
                f"another process of this run has ended, and the run with it; {run.kept}"
            ) from None
    except KeyboardInterrupt:
        if run.checkpoint == folder.checkpoint:  # a save may have been under way
            folder.complete(load_checkpoint(folder.checkpoint))
        report.show_notice(f"interrupted; {run.kept}")
        raise


def _check_finite(losses: np.ndarray, plan: Plan, first: int, run: Run) -> None:
    """Refuse a loss that is not finite; ``first`` is the number of the plan's first step."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        kept = (
            f"the last good checkpoint is {run.checkpoint} (step {first})"
            if run.checkpoint
            else "there is no checkpoint yet"
        )
        raise UserError(
            f"the loss is {losses[bad[0]]} at step {first + bad[0]}, learning rate "
            f"{plan.lr[bad[0]]:g}; {kept}; use another recipe, batch or seed"
        )


def _config(options: TrainOptions, run: Run, framework: Framework) -> dict[str, Any]:
    """Everything resolved, for ``config.json``."""
    dataset = run.loaded.dataset
    return {
        "framework": framework.name,
        **run.settings.config,
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "data_note": run.loaded.note,
        "devices": options.devices or 1,
        "max_steps": options.max_steps,
        "resumed_from": str(run.resume) if run.resume else None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": record.describe_machine(),
        **record.provenance(framework.packages),
    }
