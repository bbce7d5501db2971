"""Where a training step's time goes: ``python -m benchmarks.training_profile --help``."""

import json
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.training_contenders import LABELS, Contender, LockstepTrainer
from benchmarks.training_workers import Worker, workers_environment
from recipe import data, report
from recipe.data import Split
from recipe.files import write_atomically
from recipe.networks import NETWORKS
from recipe.options import check_choice, check_range, choice, run_command
from recipe.recipes import RECIPES, get_recipe
from torch_impl.data import read_mnist

SHOWN = 12  # operations in the table


@dataclass(frozen=True)
class ProfileOptions:
    """Profile training steps on the CPU in both frameworks."""

    network: Annotated[str, choice(*NETWORKS)] = "net10040"
    """Which network."""
    recipe: Annotated[str, choice(*RECIPES)] = "reference"
    """Which hyperparameters."""
    steps: int = 20
    """How many steps."""
    dataset: Annotated[str, choice("auto", "mnist", "digits")] = "auto"
    """auto: MNIST if it can be had, else scikit-learn's digits."""
    data_dir: Path | None = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""
    out: Path = Path("results/training-profile.json")
    """Result file."""


class Profiler:
    """A trainer whose steps are watched by its framework's own profiler."""

    def __init__(self, contender: Contender, split: Split):
        self.trainer, self.kind = LockstepTrainer(contender, split), contender.kind

    def profile(self, steps: int) -> dict[str, float]:
        """Milliseconds a step of each operation, summed over cores where it runs on several."""
        self.trainer.take(steps)
        self.trainer.take(steps)
        found = self._profile_torch(steps) if self.kind == "torch" else self._profile_jax(steps)
        return {name: milliseconds / steps for name, milliseconds in found.most_common()}

    def _profile_torch(self, steps: int) -> Counter[str]:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as watched:
            self.trainer.take(steps)
        return Counter({event.key: event.self_cpu_time_total / 1e3 for event in watched.key_averages()})

    def _profile_jax(self, steps: int) -> Counter[str]:
        import jax

        with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
            with jax.profiler.trace(folder):
                self.trainer.take(steps)
            (path,) = Path(folder).rglob("*.xplane.pb")
            trace = jax.profiler.ProfileData.from_file(str(path))
        found: Counter[str] = Counter()
        for plane in trace.planes:
            for line in plane.lines:
                for event in line.events:
                    if any(key == "hlo_op" for key, _ in event.stats) and not event.name.startswith("while"):
                        found[re.sub(r"[.\d]+$", "", event.name)] += event.duration_ns / 1e6
        return found


def main(options: ProfileOptions) -> None:
    """Profile as the command line says."""
    check_choice("--network", options.network, *NETWORKS)
    check_choice("--recipe", options.recipe, *RECIPES)
    check_choice("--dataset", options.dataset, "auto", "mnist", "digits")
    check_range("--steps", options.steps, 1, 1000)
    loaded = data.load(options.dataset, options.data_dir, read_mnist)
    split = data.split(loaded.dataset, "test")
    if loaded.note:
        report.show_notice(loaded.note)
    recipe = get_recipe(options.network, options.recipe)
    found: dict[str, dict[str, float]] = {}
    for kind in ("torch", "jax"):
        contender = Contender(kind, options.network, recipe)
        named = {
            "TORCHINDUCTOR_CPP_ENABLE_KERNEL_PROFILE": "1",  # or compiled kernels would have no names
            "KINETO_LOG_LEVEL": "5",  # PyTorch's profiler is talkative
        }
        with (
            workers_environment("cpu", fresh_caches=False),
            Worker(contender, split, make=Profiler, environment=named) as worker,
        ):
            found[kind] = worker.call("profile", options.steps)[1]
        show(kind, found[kind])
    result = describe_machine() | {
        "network": options.network,
        "recipe": options.recipe,
        "batch": recipe.batch,
        "data": {"name": loaded.dataset.name},
        "ms_per_step": found,
    }
    write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())
    report.show_line(f"-> {options.out}")


def show(kind: str, found: dict[str, float]) -> None:
    """Print the operations that take longest."""
    table = Table(title=f"{LABELS[kind]}: where a step's time goes")
    table.add_column("operation", max_width=60, overflow="ellipsis", no_wrap=True)
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    total = sum(found.values())
    for name, milliseconds in list(found.items())[:SHOWN]:
        table.add_row(name, f"{milliseconds:.2f}", f"{milliseconds / total:.0%}")
    table.add_row("all", f"{total:.2f}", "")
    report.console.print(table)


if __name__ == "__main__":
    run_command(ProfileOptions, main, "python -m benchmarks.training_profile")
