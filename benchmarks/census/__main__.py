"""Compare public ports with their originals: ``python -m benchmarks.census --help``.

The packages that it needs are in requirements.txt beside this file; docs/census.md says how to install them.
"""

import importlib.util
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import lockstep
from benchmarks.census import hub_pairs, optimizers, transformers_pairs
from benchmarks.census.confirm import confirm
from benchmarks.record import PublishOptions, Row, add_rows
from lockstep.result import Place, Result
from recipe import console
from recipe.console import UserError, explain, option, run_command

PAIRS: dict[str, ModuleType] = {
    name: module for module in (transformers_pairs, hub_pairs) for name in module.names()
}
PACKAGES = [
    "torch",
    "jax",
    "flax",
    "optax",
    "equinox",
    "transformers",
    "diffusers",
    "jax-image-models",
    "eqx-zoo",
]


@dataclass(frozen=True)
class CensusOptions(PublishOptions):
    """Compare public ports in tiny configurations, and PyTorch's optimizers with Optax's."""

    pairs: tuple[str, ...] = option((), "Only these pairs; `optimizers` is one of them", type=str, nargs="+")
    seconds: int = option(600, "Time for a pair")


def main(options: CensusOptions) -> None:
    """Compare every pair whose packages are installed, and add a line to the record after each.

    Raises:
        UserError: there is no such pair, or the record cannot be written.
    """
    unknown = set(options.pairs) - {*PAIRS, "optimizers"}
    if unknown:
        raise UserError(f"no pair {', '.join(sorted(unknown))}; there are {', '.join(PAIRS)}")
    chosen = [name for name in PAIRS if not options.pairs or name in options.pairs]
    lacking = {PAIRS[name].package(name) for name in chosen}
    lacking = {package for package in lacking if not importlib.util.find_spec(package)}
    if lacking:
        raise UserError(f"install {', '.join(sorted(lacking))}; docs/census.md says how")
    import jax

    console.show_line(
        f"{console.count(len(chosen), 'pair')}, each half a minute to {options.seconds // 60} minutes"
    )
    with tempfile.TemporaryDirectory(prefix="lockstep-") as folder:
        jax.config.update("jax_compilation_cache_dir", folder)  # most operations are the same in every pair
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        for name in chosen:
            row = measure(PAIRS[name], name, options.seconds)
            console.show_line(f"{name}: {row['verdict']}; {row['seconds']:.0f} s; {row.get('confirmed')}")
            add_rows("census", [row], PACKAGES, options.publish)
            jax.clear_caches()
    if not options.pairs or "optimizers" in options.pairs:
        add_rows("census", optimizers.measure(), PACKAGES, options.publish)


def measure(module: ModuleType, name: str, seconds: int) -> Row:
    """One line of the record: what lockstep says of a pair, and what a second way says."""
    began = time.perf_counter()
    row: Row = {"what": "model", "pair": name, "flavour": module.flavour(name), "comparable": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _limit(seconds):
                reference, port, inputs, theirs = module.build(name)
                row["comparable"] = True
                row |= describe(lockstep.compare(reference, port, inputs, port_inputs=theirs))
        except Exception as error:  # also of the model's own code: the other pairs go on
            row |= {"equal": None, "verdict": explain(error)}
        row["seconds"] = round(time.perf_counter() - began, 1)
        with _limit(seconds):
            return row | confirm(module, name, row["equal"])


def describe(result: Result) -> Row:
    """The verdict, and of each difference its kind, how far, the first line of both sides and the cause."""

    def line(place: Place | None) -> str | None:
        return ":".join(map(str, place.to_json()["sources"][0])) if place and place.sources else None

    found = [
        {
            "kind": d.kind,
            "difference": d.difference,
            "reference": line(d.reference),
            "port": line(d.port),
            "cause": d.cause,
        }
        for d in result.differences
    ]
    return {"equal": result.equal, "verdict": result.verdict, "differences": found, "notes": result.notes}


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"no verdict after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    run_command(CensusOptions, main, "python -m benchmarks.census")
