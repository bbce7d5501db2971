"""A training run from options to run folder; a framework only supplies a `Trainer`."""

import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from filelock import FileLock, Timeout
from rich.table import Table

from recipe import console, data
from recipe.checkpoint import (
    FILE_NAME,
    Checkpoint,
    Config,
    Epoch,
    Images,
    Tensors,
    find_checkpoint,
    initial_tensors,
    load_checkpoint,
    read_at_most,
    remove_leftovers,
    save_checkpoint,
    state_digest,
    write_atomically,
)
from recipe.console import UserError, check_range, option
from recipe.data import GOAL, Dataset
from recipe.networks import NETWORKS, Conv, Network, Norm, get_network
from recipe.plan import Plan, make_plans, steps_per_epoch
from recipe.provenance import count_cores, describe_machine, provenance
from recipe.recipes import RECIPES, Precision, Recipe, get_recipe

NETWORK = "|".join([*NETWORKS, "LAYERS"])
MAX_EPOCHS, MAX_BATCH, MAX_SEED, MAX_DEVICES = 1000, 10_000, 2**63 - 1, 1024
MAX_STEPS = (
    4_000_000  # a checkpoint holds the loss of every step; with more it would be too large to read at once
)
CURVES, CONFIG, LOSSES, METRICS, LOCK = "curves.png", "config.json", "losses.npy", "metrics.jsonl", ".lock"
FILES = (FILE_NAME, CONFIG, LOSSES, METRICS, CURVES)  # of a run folder
EPOCH_HEADER = "  epoch       lr   train loss  accuracy     val loss  accuracy   seconds"


# ------------------------------------------------------------ options


@dataclass(frozen=True)
class DataOptions:
    """Where the images come from."""

    dataset: Literal["auto", "mnist", "digits"] = option(
        "auto", "auto: MNIST if it is available, else scikit-learn's digits (default: auto)"
    )
    data_dir: Path | None = option(
        None, "Folder with the four original MNIST files (or set MNIST_DIR)", metavar="DIR"
    )


@dataclass(frozen=True)
class DeviceOptions:
    """Where the arithmetic is done."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: the GPU if there is one (default: auto)")


@dataclass(frozen=True)
class TrainOptions(DeviceOptions, DataOptions):
    """Train one network by one recipe. The same flags and files in both frameworks."""

    # None stands for what was not said: a run that goes on has it from its checkpoint.
    network: str | None = option(
        None,
        "Which network to train (default: net10040): a name, or a list of layers in quotes. 16 is a 3x3 "
        "convolution to 16 channels, 16x1 a 1x1 one, 16s a depthwise separable one, 16@a shares its weights "
        "with every other @a; batch norm and ReLU follow each but the last. Further words: pool, avgpool, "
        "average, dropout, and bias right after the last convolution",
        metavar=NETWORK,
    )
    recipe: str | None = option(
        None, "Which hyperparameters to use (default: tuned)", metavar="|".join(RECIPES)
    )
    epochs: int | None = option(None, "Length of the schedule (default: the recipe's)")
    batch: int | None = option(None, "Images in each step (default: the recipe's)")
    seed: int | None = option(
        None, "Decides initial weights, image order, augmentation and dropout (default: 0)"
    )
    split: Literal["test", "holdout"] | None = option(
        None, "Validate on the test images or on the last training images (default: test)"
    )
    precision: Precision | None = option(
        None,
        "Type of the arithmetic. bitwise: float64, with equal bits everywhere (default: float32 on MNIST, "
        "bitwise on the digits)",
    )
    devices: int | None = option(
        None, "Train on this many devices at once; each takes its share of every batch (default: 1)"
    )
    layers: bool = option(False, "Show the layers of the network")
    max_steps: int | None = option(None, "Stop after this step of the schedule, evaluate and save")
    out: Path | None = option(
        None,
        "Folder for the run's files (default: runs/FRAMEWORK-NETWORK-RECIPE-SEED, and -digits on these)",
        metavar="DIR",
    )
    resume: Path | None = option(
        None, "Go on with a run: its folder or its checkpoint, of either framework", metavar="RUN"
    )


# ------------------------------------------------------------ what a framework supplies


class Devices(Protocol):
    """The devices of a run: those of this process, and what it needs to know of the others."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    @property
    def name(self) -> str:
        """The GPU's name, or cpu."""
        ...

    @property
    def threads(self) -> int:
        """The threads that this process computes with, on a CPU."""
        ...


class Trainer(Protocol):
    """One framework's model, optimizer and data on its devices."""

    framework: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]  # the config records their versions

    @staticmethod
    def read_mnist(originals: dict[str, bytes]) -> data.Arrays:
        """Decode MNIST's original files, see `recipe.data.Reader`."""
        ...

    def __init__(
        self, network: Network, recipe: Recipe, dataset: Dataset, devices: Any, precision: Precision
    ): ...

    def load(self, tensors: Tensors) -> None:
        """Set parameters, statistics, momentum and average, by canonical name."""

    def tensors(self) -> Tensors:
        """Return all of these as they are now."""
        ...

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Take the plan's steps; ``advance(n)`` reports that n more are finished.

        The first call of ``advance``, maybe with n = 0, comes when everything is compiled.

        Returns:
            Loss (float64) and number of correct predictions (int) of every step, before its update.
        """
        ...

    def predict(self) -> np.ndarray:
        """Return the logits (N, 10) of the validation images, by the averaged weights if there are any."""
        ...

    def evaluate(self) -> tuple[float, float]:
        """Return loss and accuracy (0 to 1) on the validation images, from the same logits."""
        ...


# ------------------------------------------------------------ the run


def train(options: TrainOptions, trainer_type: type[Trainer], devices: Devices, report: bool = True) -> None:
    """Train as the options say and leave a run folder.

    Args:
        options: of the command line.
        trainer_type: of the framework to train in.
        devices: to train on.
        report: False in a process that only computes, beside the one that writes and reports.

    Raises:
        UserError: bad options, data, checkpoint or folder, a loss that is not finite, or a lost device.
        KeyboardInterrupt: with a note that says what was kept.
    """
    config, dataset, start, out = prepare(options, trainer_type)
    config = replace(config, device=devices.name, threads=devices.threads)
    network, recipe, images = get_network(config.network), config.recipe, len(dataset.train_images)
    last = last_step(config, images)
    if start and start.step >= last:
        if report:
            _show_finished(options, start, out)
        return
    trainer = trainer_type(network, recipe, dataset, devices, config.precision)
    if start:
        state = replace(start, config=config)
    else:
        tensors = initial_tensors(network, recipe, config.seed, config.precision)
        state = Checkpoint(0, tensors, np.empty(0), [], config)
    trainer.load(state.tensors)
    plans = make_plans(network, recipe, config.seed, images, state.step, last)
    if not report:
        _follow(trainer, plans)
        return

    with open_folder(out, options.resume), _say_what_is_kept(out, options.resume):
        if start and options.resume and load_checkpoint(find_checkpoint(options.resume)).step != start.step:
            raise UserError(f"another run has just gone on from {options.resume}; start again")
        write_atomically(out / CONFIG, (json.dumps(asdict(config), indent=2) + "\n").encode())
        if options.layers:
            show_layers(network)
        _show_start(network, config, dataset, state.step, last, out)
        compiled = compile_seconds = 0.0

        def advance(steps: int) -> None:
            nonlocal compiled
            compiled = compiled or time.perf_counter()
            progress.update(task, advance=steps, description="training")

        with console.make_progress() as progress:
            task = progress.add_task("compiling", total=last, completed=state.step)
            for plan in plans:
                began, first = time.perf_counter(), not compiled
                losses, correct = trainer.train(plan, advance)
                if first:
                    compile_seconds = compiled - began
                seconds = time.perf_counter() - began - first * compile_seconds
                _check_finite(losses, plan, state.step, out, options.resume)
                epoch = state.step // steps_per_epoch(recipe, images) + 1
                state = _next_state(trainer, plan, state, epoch, losses, correct, seconds)
                save(out, state)
                console.show_line(epoch_line(state.metrics[-1], recipe.epochs))
                left = seconds * (last - state.step) / plan.steps / 60
                if first and left >= 1:
                    console.show_line(f"about {console.count(round(left), 'minute')} left")
        write_atomically(out / CURVES, draw_curves(state))
        console.show_line(summary(state, compile_seconds))


def prepare(
    options: TrainOptions, trainer_type: type[Trainer]
) -> tuple[Config, Dataset, Checkpoint | None, Path]:
    """Check the options, the data and the checkpoint to go on from, if there is one.

    Returns:
        The run with everything resolved but its device, its images, the checkpoint's content, and its folder.

    Raises:
        UserError: something is wrong with any of them.
    """
    _check_ranges("--{}", options.epochs, options.batch, options.seed)
    check_range("--devices", options.devices, 1, MAX_DEVICES)
    check_range("--max-steps", options.max_steps, 1, 10**9)
    resume = find_checkpoint(options.resume) if options.resume else None
    start = load_checkpoint(resume) if resume else None
    if start:
        _check_start(start, options, str(resume))
        network, recipe, choice = start.network, start.config.recipe, start.config.data.name
        seed, split = start.config.seed, start.config.split
    else:
        network, choice = get_network(options.network or "net10040"), options.dataset
        recipe = get_recipe(network.name, options.recipe or "tuned")
        recipe = replace(recipe, epochs=options.epochs or recipe.epochs, batch=options.batch or recipe.batch)
        seed, split = options.seed or 0, options.split or "test"
    if choice == "digits" and options.data_dir:
        whose = f"{resume} was trained" if start else "--dataset digits trains"
        raise UserError(f"{whose} on the digits, which need no folder; leave out --data-dir")
    dataset = data.load(choice, options.data_dir, trainer_type.read_mnist, split)
    # The first epochs on so few images are wild, and in float32 wild in another way in each framework.
    usual: Precision = "float32" if dataset.name == "mnist" else "bitwise"
    precision = start.config.precision if start else options.precision or usual
    _check_sizes(network, recipe, len(dataset.train_images), options.devices or 1)
    config = Config(
        framework=trainer_type.framework,
        network=network.name,
        recipe=recipe,
        seed=seed,
        precision=precision,
        split=split,
        data=Images(dataset.name, dataset.fingerprint),
        data_note=dataset.note,
        devices=options.devices or 1,
        max_steps=options.max_steps,
        resumed_from=str(resume) if resume else None,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(),
        **provenance(trainer_type.packages),
        device="",
        threads=0,
    )
    if start and start.config.data != config.data:
        theirs = start.config.data.fingerprint
        raise UserError(
            f"{resume} was trained on other images: fingerprint {theirs}, here {dataset.fingerprint}"
        )
    if start and (last := last_step(config, len(dataset.train_images))) < start.step:
        raise UserError(f"--max-steps {last}: {resume} is at step {start.step} already; give more")
    if options.out:
        out = options.out
    elif resume and resume.name == FILE_NAME:
        out = resume.parent
    else:
        digits = "" if dataset.name == "mnist" else f"-{dataset.name}"
        out = Path("runs") / f"{config.framework}-{network.label}-{recipe.name}-{seed}{digits}"
    return config, dataset, start, out


def check_cores(devices: int, device: str) -> None:
    """Refuse more devices than cores where the devices are those of a CPU, unless it was asked for.

    Raises:
        UserError: there are more, and ``device`` is not "cpu".
    """
    if device != "cpu" and devices > count_cores():
        raise UserError(
            f"--devices {devices} on {console.count(count_cores(), 'core')} is slower than one; give fewer, "
            "or --device cpu to insist"
        )


def last_step(config: Config, images: int) -> int:
    """Return the step that a run on so many training images stops after."""
    total = steps_per_epoch(config.recipe, images) * config.recipe.epochs
    return min(total, config.max_steps or total)


def _check_ranges(name: str, epochs: int | None, batch: int | None, seed: int | None) -> None:
    check_range(name.format("epochs"), epochs, 1, MAX_EPOCHS)
    check_range(name.format("batch"), batch, 1, MAX_BATCH)
    check_range(name.format("seed"), seed, 0, MAX_SEED)


def _check_start(start: Checkpoint, options: TrainOptions, name: str) -> None:
    """Refuse a checkpoint that no run can go on from, and options that contradict the run that goes on."""
    config = start.config
    recipe = config.recipe
    said = {
        "--network": (options.network and get_network(options.network).name, config.network),
        "--recipe": (options.recipe, recipe.name),
        "--epochs": (options.epochs, recipe.epochs),
        "--batch": (options.batch, recipe.batch),
        "--seed": (options.seed, config.seed),
        "--precision": (options.precision, config.precision),
        "--split": (options.split, config.split),
        "--dataset": (None if options.dataset == "auto" else options.dataset, config.data.name),
    }
    wrong = {flag: theirs for flag, (ours, theirs) in said.items() if ours not in (None, theirs)}
    if wrong:
        theirs = ", ".join(f"{flag} {value}" for flag, value in wrong.items())
        raise UserError(f"{name} is of a run with {theirs}; leave out {', '.join(wrong)}")
    _check_ranges(f"{name}: its {{}}", recipe.epochs, recipe.batch, config.seed)
    ours = replace(get_recipe(config.network, recipe.name), epochs=recipe.epochs, batch=recipe.batch)
    for key, value in asdict(ours).items():
        if getattr(recipe, key) != value:
            raise UserError(
                f"{name} is of a run with recipe.{key} {getattr(recipe, key)}; "
                f"in this version {recipe.name} has {value}; train anew"
            )
    if len(start.losses) != start.step or not start.metrics or start.metrics[-1].step != start.step:
        raise UserError(
            f"{name} lacks the losses of its steps: it is a model to use, not a run to go on with"
        )


def _check_sizes(network: Network, recipe: Recipe, images: int, devices: int) -> None:
    if recipe.batch > images:
        raise UserError(f"--batch {recipe.batch} is more than the {images} training images")
    if recipe.batch % devices:
        raise UserError(
            f"--devices {devices} does not divide the batch of {recipe.batch} images; "
            "choose another number, or a --batch that it divides"
        )
    maps = {layer.out_shape[1:] for layer in network.layers if isinstance(layer.operation, Norm)}
    if recipe.batch == 1 and (1, 1) in maps:
        raise UserError("--batch 1 gives a batch norm one number a channel, which has no variance; give more")
    total = steps_per_epoch(recipe, images) * recipe.epochs
    if total > MAX_STEPS:
        raise UserError(
            f"{total:,} steps are more than {MAX_STEPS:,}; give fewer --epochs or a larger --batch"
        )


def _check_finite(losses: np.ndarray, plan: Plan, first: int, out: Path, resume: Path | None) -> None:
    """Refuse a loss that is not finite; ``first`` is the number of the plan's first step."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise UserError(
            f"the loss is {losses[bad[0]]} at step {first + bad[0]}, learning rate {plan.lr[bad[0]]:g}; "
            f"{what_is_kept(out, resume)}; use another recipe, batch or seed"
        )


def _next_state(
    trainer: Trainer,
    plan: Plan,
    state: Checkpoint,
    epoch: int,
    losses: np.ndarray,
    correct: np.ndarray,
    seconds: float,
) -> Checkpoint:
    """Return the state after a plan, with the metrics of its epoch."""
    val_loss, val_accuracy = trainer.evaluate()
    tensors = trainer.tensors()
    step = state.step + plan.steps
    metrics = Epoch(
        epoch=epoch,
        step=step,
        lr=float(plan.lr[-1]),
        train_loss=float(losses.mean()),
        train_accuracy=float(correct.sum() / plan.indices.size),
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        seconds=seconds,
        digest=state_digest(tensors),
    )
    return replace(
        state,
        step=step,
        tensors=tensors,
        losses=np.concatenate([state.losses, losses]),
        metrics=[*state.metrics, metrics],
    )


def _follow(trainer: Trainer, plans: Iterator[Plan]) -> None:
    """Take the run's steps. If a device is lost or a loss is not finite, the process that reports says so."""
    with suppress(ConnectionError):
        for plan in plans:
            losses, _ = trainer.train(plan, lambda _: None)
            if not np.isfinite(losses).all():
                return


# ------------------------------------------------------------ the run folder


def save(out: Path, state: Checkpoint) -> None:
    """Save a run's state, and the files that are derived from it for people and programs.

    The checkpoint comes first and holds everything, so a crash in between loses nothing.
    """
    save_checkpoint(out / FILE_NAME, state)
    for name, content in _derived(state).items():
        write_atomically(out / name, content)


def _derived(state: Checkpoint) -> dict[str, bytes]:
    """The files that are made from the checkpoint, by name; the picture is not among them."""
    losses = io.BytesIO()
    np.save(losses, state.losses, allow_pickle=False)
    lines = "".join(json.dumps(asdict(epoch)) + "\n" for epoch in state.metrics)
    return {LOSSES: losses.getvalue(), METRICS: lines.encode()}


def complete(out: Path, state: Checkpoint) -> bool:
    """Write the files that a killed run did not write after its last checkpoint; return True if there were.

    Raises:
        UserError: one cannot be written.
    """
    missing = False
    for name, content in (_derived(state) | {CURVES: draw_curves(state)}).items():
        with suppress(OSError):
            if read_at_most(out / name, len(content)) == content:
                continue
        write_atomically(out / name, content)
        missing = True
    return missing


def _is_own(out: Path, resume: Path | None) -> bool:
    """Return True if `resume` is the folder's own checkpoint."""
    own = out / FILE_NAME
    return resume is not None and own.exists() and find_checkpoint(resume).resolve() == own.resolve()


@contextmanager
def open_folder(out: Path, resume: Path | None) -> Iterator[None]:
    """Lock a folder for a run. It must be free of runs, except for the one that this run goes on from.

    Raises:
        UserError: it cannot be written, another process is running in it, or it holds a run already.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK, blocking=False).acquire()
    except Timeout:
        raise UserError(f"another run is at work in {out}; wait for it or choose another --out") from None
    except OSError as error:
        raise UserError(
            f"cannot use {out} as run folder: {error.strerror or error}; choose another --out"
        ) from None
    with lock:
        try:
            if (out / FILE_NAME).exists() and not _is_own(out, resume):
                raise UserError(
                    f"{out} already holds a run; choose another --out, or go on with --resume {out}"
                )
            for name in FILES:
                remove_leftovers(out / name)
            yield
        finally:
            with suppress(OSError):
                (out / LOCK).unlink()  # before the lock is released


@contextmanager
def _say_what_is_kept(out: Path, resume: Path | None) -> Iterator[None]:
    """If Ctrl-C ends a run, complete its folder from the checkpoint and note what was kept.

    If the run loses a device, say so at once: torchrun then tells this process to end, too.
    """
    try:
        yield
    except ConnectionError:
        raise UserError(
            f"another process of this run has ended, and the run with it; {what_is_kept(out, resume)}"
        ) from None
    except KeyboardInterrupt as interruption:
        if (out / FILE_NAME).exists():  # a save may have been under way
            complete(out, load_checkpoint(out / FILE_NAME))
        interruption.add_note(what_is_kept(out, resume))
        raise


def what_is_kept(out: Path, resume: Path | None) -> str:
    """Return the message that names the checkpoint to go on from: the run's own or the one it resumed."""
    path = out / FILE_NAME if (out / FILE_NAME).exists() else resume
    if path is None:
        return "kept: nothing, in the first epoch"
    path = find_checkpoint(path)
    run = path.parent if path.name == FILE_NAME else path
    return f"kept: {path} at step {load_checkpoint(path).step}; go on with --resume {run}"


# ------------------------------------------------------------ what a run shows


def _show_start(network: Network, config: Config, dataset: Dataset, first: int, last: int, out: Path) -> None:
    recipe = config.recipe
    per_epoch = steps_per_epoch(recipe, len(dataset.train_images))
    if dataset.note:
        console.show_notice(dataset.note)
    lines = [
        f"{network.label} ({network.parameter_count:,} parameters)",
        f"{config.framework} on {config.device}, {dataset.name}, {recipe.name}, {config.precision}, "
        f"seed {config.seed}",
        f"{console.count(recipe.epochs, 'epoch')} of {console.count(per_epoch, 'step')} "
        f"of {console.count(recipe.batch, 'image')} -> {out}",
    ]
    if config.precision == "float32":
        lines.append("float32 parts PyTorch and Flax after a few steps; --precision bitwise does not")
    if first:
        lines.append(f"going on after step {first:,}")
    if last < per_epoch * recipe.epochs:
        lines.append(f"stopping after step {last:,}")
    console.show_line("\n".join([*lines, "compiling the network, which takes up to a minute", EPOCH_HEADER]))


def _show_finished(options: TrainOptions, state: Checkpoint, out: Path) -> None:
    """Show the summary of a run that is finished; complete the files that a kill kept it from writing."""
    done = f"{options.resume} is finished: step {state.step} is its last; nothing was trained"
    if _is_own(out, options.resume):
        with open_folder(out, options.resume):
            if complete(out, state):
                console.show_notice(f"the run had reached its last step; completed the files in {out}")
    else:
        done += f", and {out} was not made"
    console.show_notice(done)
    console.show_line(summary(state, 0.0))


def show_layers(network: Network) -> None:
    """Print every layer with its output shape and parameter count."""
    table = Table("layer", "what", title=network.name)
    table.add_column("output (C, H, W)", justify="right")
    table.add_column("parameters", justify="right")
    for layer in network.layers:
        operation = layer.operation
        what = type(operation).__name__
        if isinstance(operation, Conv):
            side, pad = operation.kernel, f" pad {operation.pad}" if operation.pad else ""
            what += f" {side}x{side}{pad}, "
            what += "depthwise" if operation.depthwise else f"{layer.in_shape[0]} -> {operation.channels}"
            what += f", weights of {layer.owner}" if layer.owner != layer.name else ""
        table.add_row(layer.name, what, ", ".join(map(str, layer.out_shape)), f"{layer.parameter_count:,}")
    table.add_section()
    table.add_row("total", "no fully connected layer", "", f"{network.parameter_count:,}")
    console.screen.print(table)


def epoch_line(entry: Epoch, epochs: int) -> str:
    """Return one line on one epoch, aligned under `EPOCH_HEADER`: at most 80 columns."""
    return (
        f"{entry.epoch:>3}/{epochs:<3}  {entry.lr:7.5f}"
        f"  {entry.train_loss:11.4f}  {100 * entry.train_accuracy:6.2f} %"
        f"  {entry.val_loss:11.4f}  {100 * entry.val_accuracy:6.2f} %  {entry.seconds:8.1f}"
    )


def summary(state: Checkpoint, compile_seconds: float) -> str:
    """Return the closing lines of a run: final and best validation accuracy, parameters, seconds, digest."""
    compilation = f", and {compile_seconds:.1f} s to compile" if compile_seconds >= 0.05 else ""
    final, best = state.metrics[-1], max(state.metrics, key=lambda entry: entry.val_accuracy)
    seconds = sum(entry.seconds for entry in state.metrics)
    return (
        f"final validation accuracy {100 * final.val_accuracy:.2f} % "
        f"(epoch {final.epoch}, {state.config.data.name})\n"
        f"best  validation accuracy {100 * best.val_accuracy:.2f} % (epoch {best.epoch})\n"
        f"parameters {state.network.parameter_count:,}   training time {seconds:.1f} s{compilation}\n"
        f"SHA-256 of the state {final.digest}"
    )


def draw_curves(state: Checkpoint) -> bytes:
    """Draw loss of every step, and loss and accuracy of every epoch, as PNG bytes."""
    config, metrics = state.config, state.metrics
    figure, (left, right) = console.subplots(1, 2, figsize=(11, 4))
    left.plot(np.arange(1, state.step + 1), state.losses, lw=0.3, color="C0", alpha=0.6)
    for name, colour in (("train", "C0"), ("val", "C1")):
        label = {"train": "train", "val": "validation"}[name]
        style = {"marker": "o", "ms": 3, "color": colour, "label": label}
        left.plot(
            [entry.step for entry in metrics], [getattr(entry, f"{name}_loss") for entry in metrics], **style
        )
        accuracies = [100 * getattr(entry, f"{name}_accuracy") for entry in metrics]
        right.plot([entry.epoch for entry in metrics], accuracies, **style)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    if config.data.name == "mnist":
        right.axhline(100 * GOAL, color="grey", lw=0.8, ls="--", label=f"goal: {100 * GOAL:g} %")
    shown = [entry.val_accuracy for entry in metrics]
    shown += [entry.train_accuracy for entry in metrics[1:]]  # the first epoch's would flatten the rest
    right.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(100 * min(shown, default=0.0) - 1, 100.0))
    right.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(
        f"{config.network}, {config.recipe.name}, seed {config.seed}, {config.framework}, {config.data.name}"
    )
    return console.encode_png(figure)
