"""A training run from options to run folder; a framework only supplies a `Trainer`."""

import dataclasses
import io
import json
import reprlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from filelock import FileLock, Timeout
from rich.table import Table

from recipe import checkpoint as checkpoints
from recipe import console, data, provenance
from recipe.checkpoint import (
    Checkpoint,
    Tensors,
    initial_tensors,
    load_checkpoint,
    read_at_most,
    remove_leftovers,
    write_atomically,
)
from recipe.console import UserError, check_range, encode_png, one_line, optional, subplots
from recipe.data import GOAL, Split
from recipe.networks import NETWORKS, Conv, Network, Norm, get_network
from recipe.plan import Plan, make_plans, steps_per_epoch
from recipe.recipes import PRECISIONS, RECIPES, Recipe, get_recipe

NETWORK = "|".join([*NETWORKS, "LAYERS"])
MAX_EPOCHS, MAX_BATCH, MAX_SEED, MAX_DEVICES = 1000, 10_000, 2**63 - 1, 1024

Dataset = Literal["auto", "mnist", "digits"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "float64", "bfloat16", "bitwise"]
SplitName = Literal["test", "holdout"]


@dataclass(frozen=True)
class DataOptions:
    """Where the images come from."""

    dataset: Dataset = "auto"
    """auto: MNIST if it is available, else scikit-learn's digits."""
    data_dir: Annotated[Path | None, optional("DIR")] = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""


@dataclass(frozen=True)
class DeviceOptions:
    """Where the arithmetic is done."""

    device: Device = "auto"
    """auto: the GPU if there is one."""


@dataclass(frozen=True)
class TrainOptions(DeviceOptions, DataOptions):
    """Train one network by one recipe. The same flags and files in both frameworks."""

    network: Annotated[str | None, optional(NETWORK, "net10040")] = None
    """Which network to train: a name, or a list of layers in quotes. 16 is a 3x3 convolution to 16 channels,
    16x1 a 1x1 one, 16@a shares its weights with every other @a; batch norm and ReLU follow each but the last.
    Further words: pool, avgpool, average, dropout, and bias right after the last convolution."""
    recipe: Annotated[str | None, optional("|".join(RECIPES), "tuned")] = None
    """Which hyperparameters to use."""
    epochs: Annotated[int | None, optional("INT", "the recipe's")] = None
    """Length of the schedule."""
    batch: Annotated[int | None, optional("INT", "the recipe's")] = None
    """Images in each step."""
    seed: Annotated[int | None, optional("INT", "0")] = None
    """Decides initial weights, image order, augmentation and dropout."""
    split: Annotated[SplitName | None, optional("test|holdout", "test")] = None
    """Validate on the test images or on the last training images."""
    precision: Annotated[Precision | None, optional("float32|float64|bfloat16|bitwise", "float32")] = None
    """Type of the arithmetic. bitwise: float64, with equal bits everywhere."""
    devices: Annotated[int | None, optional("INT", "1")] = None
    """Train on this many devices at once; each takes its share of every batch."""
    max_steps: Annotated[int | None, optional("INT")] = None
    """Stop after this step of the schedule, evaluate and save."""
    out: Annotated[Path | None, optional("DIR", "runs/FRAMEWORK-NETWORK-RECIPE-SEED")] = None
    """Folder for the run's files."""
    resume: Annotated[Path | None, optional("RUN")] = None
    """Go on with a run: its folder or its checkpoint, of either framework."""

    def validate(self) -> None:
        """Check the numbers.

        Raises:
            UserError: naming the first faulty option.
        """
        check_range("--epochs", self.epochs, 1, MAX_EPOCHS)
        check_range("--batch", self.batch, 1, MAX_BATCH)
        check_range("--seed", self.seed, 0, MAX_SEED)
        check_range("--devices", self.devices, 1, MAX_DEVICES)
        check_range("--max-steps", self.max_steps, 1, 10**9)


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


CURVES, CONFIG, LOCK = "curves.png", "config.json", ".lock"
MAX_CONFIG_BYTES = 2**20
FILES = (checkpoints.FILE_NAME, CONFIG, "losses.npy", "metrics.jsonl", CURVES)


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint is."""
        return self.path / checkpoints.FILE_NAME

    def save(self, checkpoint: Checkpoint) -> None:
        """Save the run's state, and the files that are derived from it for people and programs.

        The checkpoint comes first and holds everything, so a crash in between loses nothing.
        """
        checkpoints.save_checkpoint(self.checkpoint, checkpoint)
        for name, content in _derived(checkpoint).items():
            write_atomically(self.path / name, content)

    def save_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json``."""
        write_atomically(self.path / CONFIG, (json.dumps(config, indent=2) + "\n").encode())

    def save_curves(self, checkpoint: Checkpoint) -> None:
        """Draw ``curves.png``."""
        write_atomically(self.path / CURVES, draw_curves(checkpoint))

    def complete(self, checkpoint: Checkpoint) -> bool:
        """Write the files that a killed run did not write after its last checkpoint.

        Returns:
            False if all files were there already.

        Raises:
            UserError: it cannot be written.
        """
        files = _derived(checkpoint) | {CURVES: draw_curves(checkpoint)}
        missing = {name: content for name, content in files.items() if not self._holds(name, content)}
        for name, content in missing.items():
            write_atomically(self.path / name, content)
        return bool(missing)

    def _holds(self, name: str, content: bytes) -> bool:
        try:
            return read_at_most(self.path / name, len(content)) == content
        except OSError:
            return False


def _derived(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files that are made from the checkpoint, by name; the picture is not among them."""
    losses = io.BytesIO()
    np.save(losses, checkpoint.losses, allow_pickle=False)
    lines = "".join(json.dumps(entry) + "\n" for entry in checkpoint.metrics)
    return {"losses.npy": losses.getvalue(), "metrics.jsonl": lines.encode()}


def is_own(path: Path, resume: Path | None) -> bool:
    """Whether ``resume`` is the checkpoint of the folder ``path`` itself."""
    own = path / checkpoints.FILE_NAME
    return resume is not None and resume.exists() and resume.resolve() == own.resolve()


@contextmanager
def open_folder(path: Path, resume: Path | None) -> Iterator[RunFolder]:
    """Lock a folder for a run. It must be free of runs, except for the one that this run goes on from.

    Raises:
        UserError: it cannot be written, another process is running in it, or it holds a run already.
    """
    with _lock(path):
        folder = RunFolder(path)
        if folder.checkpoint.exists() and not is_own(path, resume):
            raise UserError(
                f"{path} already holds a run{_dataset(path)}; choose another --out, "
                f"or go on with --resume {path}"
            )
        try:
            for name in FILES:
                remove_leftovers(path / name)
        except OSError as error:
            raise _unusable(path, error) from None
        yield folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Make a folder and lock it, by a file in it that is removed before the lock is released."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = FileLock(path / LOCK, blocking=False).acquire()
    except Timeout:
        raise UserError(f"another run is at work in {path}; wait for it or choose another --out") from None
    except OSError as error:
        raise _unusable(path, error) from None
    with held:
        try:
            yield
        finally:
            with suppress(OSError):
                (path / LOCK).unlink()


def _dataset(path: Path) -> str:
    """What the run in a folder was trained on, in words; nothing if its config does not tell."""
    try:
        config = json.loads(read_at_most(path / CONFIG, MAX_CONFIG_BYTES))
        return f" on {one_line(str(config['data']['name']))[:20]}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _unusable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"cannot use {path} as run folder: {reason}; choose another --out")


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
    console.screen.print(table)


EPOCH_HEADER = "  epoch       lr   train loss  accuracy     val loss  accuracy   seconds"


def epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    """One line on one epoch, aligned under `EPOCH_HEADER`: at most 80 columns."""
    return (
        f"{metrics['epoch']:>3}/{epochs:<3}  {metrics['lr']:7.5f}"
        f"  {metrics['train_loss']:11.4f}  {100 * metrics['train_accuracy']:6.2f} %"
        f"  {metrics['val_loss']:11.4f}  {100 * metrics['val_accuracy']:6.2f} %  {metrics['seconds']:8.1f}"
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


def draw_curves(checkpoint: Checkpoint) -> bytes:
    """Loss of every step, and loss and accuracy of every epoch, as PNG bytes."""
    config, metrics = checkpoint.config, checkpoint.metrics
    steps = [entry["step"] for entry in metrics]
    figure, (left, right) = subplots(1, 2, figsize=(11, 4))
    left.plot(np.arange(1, checkpoint.step + 1), checkpoint.losses, lw=0.3, color="C0", alpha=0.6)
    left.plot(steps, [entry["train_loss"] for entry in metrics], "o-", ms=3, color="C0", label="train")
    left.plot(steps, [entry["val_loss"] for entry in metrics], "o-", ms=3, color="C1", label="validation")
    left.set(xlabel="step", ylabel="loss", yscale="log")
    for name, label, colour in (("train_accuracy", "train", "C0"), ("val_accuracy", "validation", "C1")):
        accuracies = [100 * entry[name] for entry in metrics]
        right.plot([entry["epoch"] for entry in metrics], accuracies, "o-", ms=3, color=colour, label=label)
    if config["data"]["name"] == "mnist":
        right.axhline(100 * GOAL, color="grey", lw=0.8, ls="--", label=f"goal: {100 * GOAL:g} %")
    shown = [entry["val_accuracy"] for entry in metrics]
    shown += [entry["train_accuracy"] for entry in metrics[1:]]  # the first epoch's would flatten the rest
    right.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(100 * min(shown, default=0.0) - 1, 100.0))
    right.xaxis.get_major_locator().set_params(integer=True)
    left.legend(loc="upper right")
    right.legend(loc="lower right")
    figure.suptitle(
        f"{config['network']}, {config['recipe']['name']}, seed {config['seed']}, {config['framework']}, "
        f"{config['data']['name']}"
    )
    return encode_png(figure)


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
                console.show_notice(f"the run had reached its last step; completed the files in {run.out}")
    else:
        done += f", and {run.out} was not made"
    console.show_notice(done)
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
    with console.make_progress() as progress:
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
            console.show_line(epoch_line(entry, settings.recipe.epochs))
    return state, compile_seconds


def _show_start(run: Run, framework: Framework, trainer: Trainer) -> None:
    settings, recipe = run.settings, run.settings.recipe
    show_layers(settings.network)
    if run.loaded.note:
        console.show_notice(run.loaded.note)
    console.show_line(
        f"{framework.name} on {trainer.device_name}, {run.loaded.dataset.name}, {recipe.name}, "
        f"{settings.precision}, seed {settings.seed}"
    )
    console.show_line(
        f"{console.count(recipe.epochs, 'epoch')} of {console.count(run.steps_per_epoch, 'step')} "
        f"of {console.count(recipe.batch, 'image')} -> {run.out}"
    )
    if run.start:
        console.show_line(f"going on after step {run.start.step:,}")
    if run.last < run.steps_per_epoch * recipe.epochs:
        console.show_line(f"stopping after step {run.last:,}")
    console.show_line("compiling the network, which takes up to a minute")
    console.show_line(EPOCH_HEADER)


def _show_summary(run: Run, state: Checkpoint, compile_seconds: float) -> None:
    parameters, dataset = run.settings.network.parameter_count, run.loaded.dataset.name
    console.show_line(summary(state.metrics, parameters, dataset, compile_seconds))


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
        console.show_notice(f"interrupted; {run.kept}")
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
        "machine": provenance.describe_machine(),
        **provenance.provenance(framework.packages),
    }
