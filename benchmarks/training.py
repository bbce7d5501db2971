"""Training speed beside two hand-written scripts: ``python -m benchmarks.training --help``."""

import importlib
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from benchmarks import workers
from benchmarks.accuracy import load_framework
from benchmarks.progress import show_progress
from benchmarks.record import PublishOptions, Row, add_rows, machines, newest
from benchmarks.tables import LABELS, make_table, show_table
from benchmarks.workers import MatrixProduct, Worker, convolution_flops, round_figures
from recipe import console, data
from recipe.checkpoint import initial_tensors
from recipe.console import UserError, check_range, option, run_command
from recipe.data import GOAL, Dataset
from recipe.networks import get_network
from recipe.plan import make_plans, steps_per_epoch
from recipe.recipes import RECIPES, Precision, Recipe, get_recipe
from recipe.run import MAX_EPOCHS, NETWORK, DataOptions, DeviceOptions

SCRIPTED = ("net10040", "net9954")  # the networks that the hand-written scripts train
BASELINE, BASELINE_EPOCHS = "net9808", 5  # its recipe tuned is what whole trainings are compared with
SCRIPTS = {"torch-script": "torch_script", "jax-script": "flax_script"}  # in benchmarks/baselines/
PACKAGES = ("torch", "torchvision", "jax", "jaxlib", "flax", "optax", "numpy")

Kind = Literal["torch-script", "torch", "jax-script", "jax"]


@dataclass(frozen=True)
class TrainingOptions(DeviceOptions, DataOptions, PublishOptions):
    """Time training in both frameworks beside hand-written scripts: steps and one epoch, or until 99.4 %."""

    network: str | None = option(
        None,
        f"Which network to train (default: {' and '.join(SCRIPTED)}); torch_impl.train --help says how to "
        "list layers",
        metavar=NETWORK,
    )
    recipe: str = option(
        "reference",
        "Which hyperparameters to use (default: reference); the scripts always use those of reference",
        metavar="|".join(RECIPES),
    )
    contenders: Sequence[Kind] = option(
        get_args(Kind), "What to time (default: all)", type=str, choices=get_args(Kind), nargs="+"
    )
    precision: Sequence[Precision] = option(
        ("float32",),
        "Types of the arithmetic to compare (default: float32); the scripts always use float32",
        type=str,
        choices=get_args(Precision),
        nargs="+",
    )
    rounds: int = option(5, "How often each contender is timed (default: 5)")
    steps: int = option(20, "Training steps in one round (default: 20)")
    epochs: int = option(1, "Whole epochs to time after the steps (default: 1)")
    time_to_accuracy: int | None = option(
        None,
        "Instead: whole trainings on a schedule of so many epochs and the time to the task's accuracy, "
        f"beside {BASELINE_EPOCHS} epochs of {BASELINE}; use it with --recipe fast or tuned",
        metavar="EPOCHS",
    )
    seeds: int = option(5, "Runs of each contender with --time-to-accuracy (default: 5)")


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    kind: Kind
    network: str
    recipe: Recipe  # the scripts use its batch only; all else is written in them
    device: str = "cpu"  # or cuda
    precision: Precision = "float32"

    @property
    def is_script(self) -> bool:
        """True for a hand-written script."""
        return self.kind in SCRIPTS

    def row(self, measure: str, **figures: Any) -> Row:
        """A row of ``training.jsonl``."""
        about = {"measure": measure, "network": self.network, "recipe": self.recipe.name}
        about |= {"contender": self.kind, "batch": self.recipe.batch, "precision": self.precision}
        return round_figures(about | {"device": self.device} | figures)


class Ours:
    """One of this project's trainers, in a process of its own; its methods return when the device is done."""

    def __init__(self, contender: Contender, dataset: Dataset):
        self.contender = contender
        self.network, self.images = get_network(contender.network), len(dataset.train_images)
        trainer_type, devices = load_framework(contender.kind, contender.device)
        self.trainer = trainer_type(self.network, contender.recipe, dataset, devices, contender.precision)
        self.start(contender.recipe.epochs)
        self.plan, self.position = next(self.plans), 0

    def start(self, epochs: int, seed: int = 0) -> None:
        """Go back to the initial weights, for a schedule of so many epochs."""
        recipe = replace(self.contender.recipe, epochs=epochs)
        self.trainer.load(initial_tensors(self.network, recipe, seed, self.contender.precision))
        steps = epochs * steps_per_epoch(recipe, self.images)
        self.plans = make_plans(self.network, recipe, seed, self.images, 0, steps)

    def run_steps(self, steps: int) -> None:
        """Train for some steps of the first epoch; start it again where too few are left."""
        if self.position + steps > self.plan.steps:
            self.position = 0
        self.trainer.train(self.plan.part(self.position, self.position + steps), lambda _: None)
        self.position += steps

    def run_epoch(self) -> float:
        """Train for the next epoch, drawing its random numbers included; returns seconds."""
        began = time.perf_counter()
        self.trainer.train(next(self.plans), lambda _: None)
        return time.perf_counter() - began

    def run_only_epoch(self) -> tuple[float, float]:
        """Train from the start on a schedule of one epoch; returns seconds and validation accuracy."""
        self.start(epochs=1)
        return self.run_epoch(), self.trainer.evaluate()[1]

    def run_whole(self, seed: int, target: float = GOAL) -> Row:
        """Train from the start by the whole recipe; find the first epoch that ends with the target accuracy.

        The seconds leave out validation, and compilation if an epoch was run before.
        """
        self.start(self.contender.recipe.epochs, seed)
        seconds: list[float] = []
        accuracies: list[float] = []
        for _ in range(self.contender.recipe.epochs):
            seconds.append(self.run_epoch())
            accuracies.append(self.trainer.evaluate()[1])
        reached = [n for n, accuracy in enumerate(accuracies, 1) if accuracy >= target]
        epochs = reached[0] if reached else len(accuracies)
        return {
            "epochs": epochs,
            "seconds": sum(seconds[:epochs]),
            "reached": bool(reached),
            "best": max(accuracies),
            "final": accuracies[-1],
            "whole_s": sum(seconds),
        }


class Script:
    """One of `benchmarks.baselines`, in a process of its own."""

    def __init__(self, contender: Contender, dataset: Dataset):
        script = importlib.import_module(f"benchmarks.baselines.{SCRIPTS[contender.kind]}")
        model = getattr(script, contender.network)()
        self.train, batch = script.make_training(model, contender.device), contender.recipe.batch
        if contender.kind == "torch-script":
            with tempfile.TemporaryDirectory(prefix="lockstep-") as root:
                write_originals(dataset, Path(root) / "MNIST" / "raw")
                self.make_batches = script.make_loader(root, batch, contender.device).__iter__
        else:
            images, labels = dataset.train_images, dataset.train_labels
            rng = np.random.default_rng(0)
            self.make_batches = partial(script.make_batches, images, labels, rng, batch)
        self.batches = (batch for _ in itertools.count() for batch in self.make_batches())

    def run_steps(self, steps: int) -> None:
        """Train for some steps; the loss of the last is read, so it is finished."""
        self.train(itertools.islice(self.batches, steps))

    def run_epoch(self) -> float:
        """Train on all images once; returns seconds."""
        began = time.perf_counter()
        self.train(self.make_batches())
        return time.perf_counter() - began


def write_originals(dataset: Dataset, folder: Path) -> None:
    """Write the training images and labels, and as many labels as test images, as torchvision reads them."""
    folder.mkdir(parents=True)
    for part, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("t10k", dataset.val_images, dataset.val_labels),
    ):
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            header = np.array([0x0800 + array.ndim, *array.shape], ">i4")  # 0x08 means uint8
            (folder / name).write_bytes(header.tobytes() + np.ascontiguousarray(array).tobytes())


def main(options: TrainingOptions) -> None:
    """Measure, print, and record what the options say.

    Raises:
        UserError: a faulty option or data folder, or a contender fails.
    """
    check_range("--rounds", options.rounds, 1, 1000)
    check_range("--steps", options.steps, 1, 10_000)
    check_range("--epochs", options.epochs, 0, 100)
    check_range("--time-to-accuracy", options.time_to_accuracy, 1, MAX_EPOCHS)
    check_range("--seeds", options.seeds, 1, 1000)
    if not options.contenders or not options.precision:
        raise UserError("--contenders and --precision need at least one value")
    networks = SCRIPTED if options.network is None else (get_network(options.network).name,)
    recipes = {network: get_recipe(network, options.recipe) for network in networks}

    from torch_impl.data import read_mnist  # here, so that --help and mistakes are quick

    dataset = data.load(options.dataset, options.data_dir, read_mnist)
    options.check_record("training", dataset.name)
    if dataset.note:
        console.show_notice(dataset.note)
    path = None
    for network, recipe in recipes.items():
        contenders = [
            Contender(kind, network, recipe, workers.resolve_device(options.device), precision)
            for kind in options.contenders
            for precision in (("float32",) if kind in SCRIPTS else options.precision)
        ]
        if network not in SCRIPTED or options.time_to_accuracy:
            contenders = [each for each in contenders if not each.is_script]
        if not contenders:
            raise UserError(f"the scripts do not train {network} or to an accuracy; give other --contenders")
        if options.time_to_accuracy:
            table = TIME
            rows = measure_accuracy(contenders, dataset, options.time_to_accuracy, options.seeds)
        else:
            table = STEPS
            rows = measure_steps(contenders, dataset, options.rounds, options.steps, options.epochs)
        rows = [row | {"dataset": dataset.name} for row in rows]
        show_table(f"{network}, {recipe.name}, {contenders[0].device}", *table, list(map(describe, rows)))
        path = add_rows("training", rows, PACKAGES, options.publish)
    console.show_line(f"-> {path}")


@contextmanager
def start_all(contenders: Sequence[Contender], dataset: Dataset) -> Iterator[dict[Contender, Worker]]:
    """A process for each contender, whose compilers start with empty caches."""
    with ExitStack() as stack:
        processes = {}
        for each in contenders:
            caches = stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-"))
            variables = {"TORCHINDUCTOR_CACHE_DIR": caches, "LOCKSTEP_CACHE": caches}  # JAX's is in ours
            environment = workers.environment(each.device) | variables
            make, name = (Script if each.is_script else Ours), label(each.kind, each.precision)
            processes[each] = Worker(name, make, each, dataset, environment=environment)
            stack.callback(processes[each].close)
        for process in processes.values():  # they import their libraries at the same time
            process.wait()
        yield processes


def step_flops(contender: Contender) -> int:
    """Floating-point operations of the convolutions in one training step.

    Each convolution's two gradients take as many as the convolution itself; the first convolution needs only
    the gradient of its weights.
    """
    forward = convolution_flops(get_network(contender.network))
    return contender.recipe.batch * (3 * sum(forward) - forward[0])


def measure_steps(
    contenders: Sequence[Contender], dataset: Dataset, rounds: int, steps: int, epochs: int
) -> list[Row]:
    """Time steps of all contenders in turn, every other round in reverse order; then whole epochs.

    Before that each takes the steps twice, to compile and to warm up. Times are medians over the rounds, with
    the lowest and the highest; a speedup's lowest and highest are over pairs of the same round.

    Args:
        contenders: of one network, recipe and device.
        dataset: the images.
        rounds: how often each is timed.
        steps: in one round.
        epochs: whole epochs to time; of a script at most one.
    """
    device, turns = contenders[0].device, [contenders, contenders[::-1]]
    step_ms: dict[Contender, list[float]] = {each: [] for each in contenders}
    epochs_s: dict[Contender, list[float]] = {each: [] for each in contenders}
    compile_s: dict[Contender, float] = {}
    accuracy: dict[Contender, float] = {}
    flops_per_s: list[float] = []
    with (
        start_all(contenders, dataset) as processes,
        Worker("matrix", MatrixProduct, device, environment=workers.environment(device)) as product,
        show_progress((1 + rounds + epochs) * len(contenders)) as advance,
    ):
        for each, process in processes.items():
            first = process.time("run_steps", steps)
            compile_s[each] = max(0.0, first - process.time("run_steps", steps))
            advance(f"{process.label} compiled")
        for turn in range(rounds):
            flops_per_s.append(product.call("measure"))
            for each in turns[turn % 2]:
                step_ms[each].append(1e3 * processes[each].time("run_steps", steps) / steps)
                advance(f"{processes[each].label}, round {turn + 1}")
        for turn in range(epochs):
            for each, process in processes.items():
                if each.is_script and turn == 0:
                    epochs_s[each].append(process.call("run_epoch"))
                elif not each.is_script:
                    if turn == 0 and each.kind == "jax":  # it compiles for each number of steps
                        process.call("run_only_epoch")
                    seconds, accuracy[each] = process.call("run_only_epoch")
                    epochs_s[each].append(seconds)
                advance(f"{process.label}, an epoch")

    limit_ms = 1e3 * step_flops(contenders[0]) / float(np.median(flops_per_s))
    rows = []
    for each in contenders:
        median = float(np.median(step_ms[each]))
        figures = {"rounds": rounds, "steps": steps, "step_ms": median}
        figures |= {"step_ms_low": min(step_ms[each]), "step_ms_high": max(step_ms[each])}
        figures |= {"limit_ms": limit_ms, "times_limit": median / limit_ms, "compile_s": compile_s[each]}
        figures |= {"epoch_s": float(np.median(epochs_s[each])) if epochs else None}
        figures |= {"epoch_accuracy": accuracy.get(each)}  # on a schedule of one epoch
        for script in (other for other in contenders if other.kind == f"{each.kind}-script"):
            ratios = np.array(step_ms[script]) / np.array(step_ms[each])
            figures |= {"speedup": float(np.median(step_ms[script])) / median}
            figures |= {"speedup_low": float(ratios.min()), "speedup_high": float(ratios.max())}
        rows.append(each.row("steps", **figures))
    return rows


def measure_accuracy(
    contenders: Sequence[Contender], dataset: Dataset, schedule: int, seeds: int
) -> list[Row]:
    """Time whole trainings on a schedule of so many epochs, beside those of `BASELINE` in the same framework.

    Each contender compiles in an epoch of its own; then they take turns, seed by seed. Until the first epoch
    that ends at 99.4 % on the test images: a seed that does not get there counts with the whole schedule.
    """
    short = replace(get_recipe(BASELINE, "tuned"), epochs=BASELINE_EPOCHS)
    ours = [replace(each, recipe=replace(each.recipe, epochs=schedule)) for each in contenders]
    baseline_of = {each: replace(each, network=BASELINE, recipe=short) for each in ours}
    everyone = list(dict.fromkeys([*ours, *baseline_of.values()]))
    results: dict[Contender, list[Row]] = {each: [] for each in everyone}
    turns = [everyone, everyone[::-1]]
    with (
        start_all(everyone, dataset) as processes,
        show_progress((1 + seeds) * len(everyone)) as advance,
    ):
        for each, process in processes.items():
            process.call("run_only_epoch")
            advance(f"{each.network}, {process.label} compiled")
        for seed in range(seeds):
            for each in turns[seed % 2]:
                results[each].append(processes[each].call("run_whole", seed))
                advance(f"{each.network}, {processes[each].label}, seed {seed}")
    rows = []
    for each, runs in results.items():
        means = ("epochs", "seconds", "best", "final", "whole_s")
        figures = {key: float(np.mean([run[key] for run in runs])) for key in means}
        seconds = [run["seconds"] for run in runs]
        figures |= {"seconds_low": min(seconds), "seconds_high": max(seconds)}
        pairs = zip(runs, results[baseline_of.get(each, each)], strict=True)
        figures |= {"ratio": float(np.median([run["whole_s"] / beside["whole_s"] for run, beside in pairs]))}
        figures |= {"schedule": each.recipe.epochs, "seeds": seeds}
        figures |= {"reached": sum(run["reached"] for run in runs)}
        rows.append(each.row("accuracy", **figures))
    return rows


# ----------------------------------------------------------------------------------------- the page's tables

STEPS = (
    "network | | ms a step | x script | times the limit | epoch, s | compilation, s",
    "{network} | {label} | {step_ms:.2f} | {speedup:.2f} | {times_limit:.1f} | {epoch_s:.2f} "
    "| {compile_s:.0f}",
)
TIME = (
    "network, recipe | processor | | epochs | whole training, s | of the baseline | last epoch, % "
    "| seeds that reach 99.4 % | after epochs | after seconds | lowest to highest",
    "`{network}`, {recipe} | {processor} | {label} | {schedule} | {whole_s:.1f} | {ratio:.2f} | {last:.2f} "
    "| {reached} of {seeds} | {epochs:.1f} | {seconds:.1f} | {seconds_low:.1f} to {seconds_high:.1f}",
)


def label(kind: str, precision: str) -> str:
    """A contender's name, with its precision."""
    return LABELS[kind] + ("" if precision == "float32" else f" {precision}")


def describe(row: Row) -> Row:
    """A row with what tables show beside."""
    gain = (
        "{speedup:.2f} ({speedup_low:.2f} to {speedup_high:.2f})".format(**row)
        if row.get("speedup")
        else None
    )
    last = 100 * row["final"] if "final" in row else None
    shown = {"speedup": None, "gain": gain, "processor": row["device"], "last": last}
    shown |= {"whole_s": None, "ratio": None}  # older rows stopped at the target
    return shown | {"label": label(row["contender"], row["precision"])} | row


def recorded(*keys: str, **where: Any) -> list[Row]:
    """The newest rows of the record that have some values, for each contender, network and some keys."""
    rows = []
    for row in newest("training", "contender", "network", "device", *keys, **where):
        machine = machines()[row["machine"]]
        processor = machine["instructions"] if row["device"] == "cpu" else machine["gpu"]
        rows.append(describe(row) | {"processor": processor})
    return rows


def steps_table() -> str:
    """Steps beside the scripts'."""
    return make_table(
        "network | processor | | ms a step | lowest to highest | times as fast as its script "
        "| arithmetic limit, ms | times the limit | epoch, s | compilation, s",
        "`{network}` | {processor} | {label} | {step_ms:.2f} | {step_ms_low:.2f} to {step_ms_high:.2f} "
        "| {gain} | {limit_ms:.2f} | {times_limit:.1f} | {epoch_s:.2f} | {compile_s:.0f}",
        recorded("batch", "machine", "precision", measure="steps", recipe="reference"),
        "benchmarks.training",
    )


def time_table() -> str:
    """Time to 99.4 %."""
    again = "benchmarks.training --network net17816 --recipe fast --contenders torch jax --time-to-accuracy 3"
    return make_table(*TIME, recorded("schedule", measure="accuracy"), again)


def precisions_table(network: str, again: str) -> str:
    """What the precisions cost, and the rest of the command that measures it again."""
    rows = recorded("precision", measure="steps", recipe="tuned", network=network, device="cpu")
    return make_table(
        " | precision | ms a step | accuracy after one epoch",
        "{label} | {precision} | {step_ms:.2f} | {epoch_accuracy:.2%}",
        [row | {"label": LABELS[row["contender"]]} for row in rows],
        f"benchmarks.training --network {network} --recipe tuned --contenders torch jax --precision {again}",
    )


def claim() -> str:
    """README's line on the CPU."""
    steps = recorded(
        "batch", "machine", measure="steps", recipe="reference", precision="float32", device="cpu"
    )
    slowest = min(row["speedup"] for row in steps if row["speedup"])
    return f"a step is at least {slowest:.1f} times as fast as a hand-written script's, in either framework"


def gpu_claim() -> str:
    """README's line on the GPU."""
    rows = recorded("schedule", measure="accuracy", contender="torch")
    row = min((row for row in rows if row["device"] != "cpu"), key=lambda row: row["seconds"])
    return f"PyTorch trains {row['seconds']:.1f} s on an {row['processor']} to reach the task"


if __name__ == "__main__":
    run_command(TrainingOptions, main, "python -m benchmarks.training")
