"""Every GPU measurement in one call of less than nine minutes: ``python -m benchmarks.gpu``.

It needs this repository, its dependencies and, where there is no network, MNIST in the cache (LOCKSTEP_CACHE)
or in a folder (MNIST_DIR). What matters most comes first; each part is written as soon as it is done, a part
that fails says why and does not stop the others, and what the time no longer allows is left out and named.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.seeds_workers import measure_seeds
from benchmarks.training_contenders import Contender, with_batch
from benchmarks.training_report import show_batches, show_steps, show_time_to_target
from benchmarks.training_runs import KINDS, measure_batches, measure_steps, measure_time_to_target
from benchmarks.training_workers import Worker, workers_environment
from recipe import data, report
from recipe.data import Split
from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.networks import NETWORKS, get_network
from recipe.options import check_choice, run_command
from recipe.recipes import get_recipe
from torch_impl.data import read_mnist

SHORT_SCHEDULES = (6, 10)  # epochs of `tuned`, tried for the time to 99.4 %

# Settings that may help but are no part of the fast path; measured beside it.
TRIES: dict[str, tuple[str, dict[str, str]]] = {
    "torch, max-autotune": ("torch", {"TORCHINDUCTOR_MAX_AUTOTUNE": "1"}),
    "jax, loops in CUDA graphs": (
        "jax",
        {
            "XLA_FLAGS": "--xla_gpu_enable_command_buffer="
            "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE "
            "--xla_gpu_graph_min_graph_size=1"
        },
    ),
    "jax, no CUDA graphs": ("jax", {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="}),
}


@dataclass(frozen=True)
class GpuOptions:
    """Check lockstep on the GPU, then measure training there."""

    minutes: float = 8.5
    """No new work after this time."""
    out: Path = Path("results")
    """Folder of the result files, gpu-*.json."""
    data_dir: Path | None = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    tries: bool = True
    """At the end, also time some compiler settings that are not the default."""
    parts: tuple[str, ...] = ()
    """Only these parts, by the names of their result files; all if none is given."""


@dataclass(frozen=True)
class Scale:
    """How much is measured; a test has less."""

    device: str = "cuda"
    networks: tuple[str, ...] = tuple(NETWORKS)
    kinds: tuple[str, ...] = KINDS
    parity_steps: int = 20
    rounds: int = 5
    steps: int = 50
    epochs: int = 3
    schedules: tuple[int, ...] = SHORT_SCHEDULES
    batches: tuple[int, ...] = (64, 128, 512, 2048)
    batch: int | None = None  # of the steps and epochs, the recipe's if None
    seeds: int = 20  # trained at once
    tries: bool = True

    def ours(self) -> list[str]:
        """The kinds that are this project's trainers."""
        return [kind for kind in self.kinds if not kind.endswith("script")]


class LockstepCheck:
    """Both trainers side by side, in a process of their own."""

    def __init__(self, contender: Contender, split: Split):
        self.contender = contender
        self.split = split._replace(val_images=split.val_images[:1000], val_labels=split.val_labels[:1000])

    def compare(self, steps: int, noise_floor: bool) -> dict[str, Any]:
        """Largest differences over some steps, dropout and augmentation on."""
        from benchmarks.lockstep import run_lockstep, summarise, turn_everything_on

        contender = self.contender
        losses, comparisons = run_lockstep(
            get_network(contender.network), turn_everything_on(contender.recipe), self.split,
            steps=steps, precision=contender.precision, device=contender.device, noise_floor=noise_floor,
        )  # fmt: skip
        return {
            "steps": steps,
            "pairs": {pair: summarise(comparison) for pair, comparison in comparisons.items()},
            "loss_differences": np.abs(losses[0] - losses[1]).tolist(),
        }


def check_parity(scale: Scale, split: Split, deadline: float) -> dict[str, Any]:
    """Lockstep of each network in float64 and, beside the noise floor, in float32; all at once."""
    cases = [(network, precision) for network in scale.networks for precision in ("float64", "float32")]

    def check(case: tuple[str, str]) -> dict[str, Any]:
        network, precision = case
        contender = Contender("lockstep", network, get_recipe(network, "tuned"), scale.device, precision)
        try:
            with Worker(contender, split, make=LockstepCheck, deadline=deadline) as worker:
                return worker.call("compare", scale.parity_steps, precision == "float32")[1]
        except UserError as error:
            return {"failure": str(error)}

    with ThreadPoolExecutor(len(cases)) as pool:
        found = dict(zip(cases, pool.map(check, cases), strict=True))
    for (network, precision), result in found.items():
        pairs = result.get("pairs", {})
        worst = {pair: f"{summary['worst_loss_difference']:.1e}" for pair, summary in pairs.items()}
        report.show_line(f"lockstep {network} {precision}: {worst or result['failure']}")
    return {
        network: {precision: found[network, precision] for precision in ("float64", "float32")}
        for network in scale.networks
    }


def measure_training(scale: Scale, split: Split, deadline: float) -> dict[str, Any]:
    """Steps and epochs of `reference` beside the scripts."""
    return {
        network: compare(scale, split, deadline, network, "float32", scale.kinds)
        for network in scale.networks
    }


def measure_bfloat16(scale: Scale, split: Split, deadline: float) -> dict[str, Any]:
    """The same in reduced precision, without the scripts."""
    return {
        network: compare(scale, split, deadline, network, "bfloat16", scale.ours())
        for network in scale.networks
    }


def compare(
    scale: Scale, split: Split, deadline: float, network: str, precision: str, kinds: Sequence[str]
) -> dict[str, Any]:
    """Steps and epochs of one network, or why there are none."""
    recipe = get_recipe(network, "reference")
    try:
        found = measure_steps(
            network, with_batch(recipe, scale.batch), split, kinds=kinds, rounds=scale.rounds,
            steps=scale.steps, epochs=scale.epochs, device=scale.device, precision=precision,
            deadline=deadline,
        )  # fmt: skip
    except UserError as error:
        report.show_notice(f"{network}, {precision}: {error}")
        return {"failure": str(error)}
    show_steps(f"{network}, {precision}", found)
    return found


def measure_accuracy(scale: Scale, split: Split, deadline: float) -> dict[str, Any]:
    """Time to 99.4 % by `tuned` and by shorter schedules of it."""
    network = scale.networks[0]
    tuned = get_recipe(network, "tuned")
    schedules = (*scale.schedules, tuned.epochs) if scale.schedules else (1,)
    found = measure_time_to_target(
        network, tuned, split, schedules=schedules, kinds=scale.ours(), device=scale.device,
        deadline=deadline,
    )  # fmt: skip
    show_time_to_target(found)
    return found


def measure_many_seeds(scale: Scale, split: Split, deadline: float) -> dict[str, Any]:
    """Many seeds of each network at once, by `tuned`, to its end."""
    found = {}
    for network in scale.networks:
        recipe = with_batch(get_recipe(network, "tuned"), scale.batch)
        if not scale.schedules:
            recipe = replace(recipe, epochs=1)
        found[network] = measure_seeds(
            network, recipe, split, kinds=scale.ours(), seeds=scale.seeds, steps=scale.steps,
            device=scale.device, deadline=deadline,
        )  # fmt: skip
    return found


def measure_scaling(scale: Scale, split: Split, deadline: float) -> dict[str, Any]:
    """Time per image and memory by batch size."""
    network = scale.networks[0]
    found = measure_batches(
        network, get_recipe(network, "reference"), split, scale.batches, kinds=scale.ours(),
        images=128 * scale.steps, device=scale.device, deadline=deadline,
    )  # fmt: skip
    show_batches(found)
    return found


def measure_tries(scale: Scale, split: Split, deadline: float) -> dict[str, Any]:
    """Step time with settings of `TRIES`, one after the other."""
    found: dict[str, Any] = {}
    network = scale.networks[0]
    recipe = get_recipe(network, "reference")
    for name, (kind, environment) in TRIES.items():
        if not scale.tries or kind not in scale.kinds:
            continue
        try:
            result = measure_steps(
                network, recipe, split, kinds=[kind], rounds=scale.rounds, steps=scale.steps, epochs=0,
                device=scale.device, environment=environment, deadline=deadline,
            )  # fmt: skip
            step_ms = result["contenders"][kind]["step_ms"]
            found[name] = {"environment": environment, "step_ms": step_ms}
            report.show_line(f"{name}: {step_ms['median']:.3f} ms a step")
        except UserError as error:
            found[name] = {"environment": environment, "failure": str(error)}
            report.show_notice(f"{name}: {error}")
    return found


PARTS: dict[str, Callable[[Scale, Split, float], dict[str, Any]]] = {
    "gpu-lockstep": check_parity,
    "gpu-training": measure_training,
    "gpu-time-to-accuracy": measure_accuracy,
    "gpu-seeds": measure_many_seeds,
    "gpu-bfloat16": measure_bfloat16,
    "gpu-batches": measure_scaling,
    "gpu-tries": measure_tries,
}


def measure(
    scale: Scale,
    split: Split,
    about: dict[str, Any],
    out: Path,
    deadline: float = math.inf,
    parts: Sequence[str] = (),
) -> None:
    """Do all parts in order, or those named, each into a file of its own."""
    for name in parts or PARTS:
        part = PARTS[name]
        if time.monotonic() > deadline:
            report.show_notice(f"no time left for {name}")
            continue
        began = time.perf_counter()
        try:
            found = part(scale, split, deadline)
        except UserError as error:
            found = {"failure": str(error)}
            report.show_notice(f"{name}: {error}")
        result = about | {"scale": asdict(scale), "seconds": time.perf_counter() - began, "found": found}
        write_atomically(out / f"{name}.json", (json.dumps(result, indent=1) + "\n").encode())
        report.show_line(f"-> {out / name}.json ({result['seconds']:.0f} s)")


def check_cuda() -> None:
    """Refuse to go on unless both frameworks see the GPU.

    Raises:
        UserError: naming the framework that does not.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError("PyTorch sees no CUDA device here; for a CPU there is benchmarks.training")
    import jax

    if not any(device.platform == "gpu" for device in jax.devices()):
        raise UserError("JAX sees no CUDA device here; install its plugin: pip install 'jax[cuda13]'")


def check_minutes(minutes: float) -> None:
    """Refuse what is no sensible time.

    Raises:
        UserError: naming the option and its range.
    """
    if not 0 < minutes <= 600:  # nor is nan
        raise UserError(f"--minutes {minutes} is out of range; give up to 600")


def main(options: GpuOptions) -> None:
    """Measure as the command line says."""
    check_minutes(options.minutes)
    deadline = time.monotonic() + 60 * options.minutes
    for part in options.parts:
        check_choice("--parts", part, *PARTS)
    with workers_environment("cuda", fresh_caches=False):
        check_cuda()
    loaded = data.load("mnist", options.data_dir, read_mnist)
    split = data.split(loaded.dataset, "test")
    about = describe_machine() | {
        "data": {"name": loaded.dataset.name, "fingerprint": loaded.dataset.fingerprint},
    }
    with workers_environment("cuda", fresh_caches=True):
        measure(Scale(tries=options.tries), split, about, options.out, deadline, options.parts)


if __name__ == "__main__":
    run_command(GpuOptions, main, "python -m benchmarks.gpu")
