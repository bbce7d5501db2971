"""The tables and pictures of the pages, made from the record and the code: ``python -m benchmarks.pages``.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->`` in one of `PAGES`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import accuracy, inference, lockstep, models, runtimes, training
from benchmarks.census import tables as census
from benchmarks.record import RESULTS
from benchmarks.twins import draw_twins
from recipe.checkpoint import write_atomically
from recipe.console import option, run_command

ROOT = RESULTS.parent
FIGURES = ROOT / "docs" / "figures"
PAGES = [ROOT / "README.md", ROOT / "models" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def claims() -> str:
    """README's other claims, a line each."""
    lines = {
        "accuracy": (accuracy.claim, "docs/accuracy.md"),
        "speed": (training.claim, "docs/speed.md"),
        "GPU": (training.gpu_claim, "docs/speed.md"),
        "ONNX": (inference.claim, "docs/inference.md"),
        "page": (models.claim, "demo/README.md"),
        "census": (census.claim, "docs/census.md"),
    }
    return "\n".join(f"- [{name}]({page}): {fact()}" for name, (fact, page) in lines.items())


TABLES: dict[str, Callable[[], str]] = {
    "headline": lockstep.headline,
    "claims": claims,
    "lockstep": lockstep.runs_table,
    "bitwise": lockstep.bitwise_table,
    "precisions": partial(
        training.precisions_table, "net9954", "float32 bfloat16 float64 bitwise --rounds 3"
    ),
    "seeds": partial(accuracy.seeds_table, "tuned"),
    "equivalence": accuracy.equivalence_table,
    "reference": accuracy.reference_table,
    "fast": partial(accuracy.seeds_table, "fast"),
    "frontier": accuracy.frontier_table,
    "trials": accuracy.trials_table,
    "steps": training.steps_table,
    "time": training.time_table,
    "precision": partial(training.precisions_table, "net10040", "float32 bfloat16"),
    "inference": inference.latencies_table,
    "files": inference.files_table,
    "runtimes": runtimes.runtimes_table,
    "models": models.models_table,
    "census-counts": census.summary,
    "false-alarms": census.false_alarms,
    "census-pairs": census.pairs_table,
    "optimizers": census.optimizers_table,
}
PICTURES: dict[str, Callable[[], bytes]] = {
    "lockstep.png": partial(lockstep.draw_run, lockstep.FULL_RUN),
    "lockstep-bits.png": lockstep.draw_whole_runs,
    "lockstep-float32.png": partial(lockstep.draw_run, lockstep.FLOAT32_RUN),
    "accuracy.png": accuracy.draw_accuracy,
    "frontier.png": accuracy.draw_frontier,
    "twins.svg": draw_twins,
}


@dataclass(frozen=True)
class PagesOptions:
    """Rewrite the tables of README.md, docs/ and models/ from results/."""

    figures: bool = option(False, "Draw the pictures in docs/figures/, too")


def fill_page(text: str) -> str:
    """The text of a page with its tables as the results are now; a block that is not of `TABLES` stays."""

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        return f"{match[1]}{TABLES[name]()}\n{match[3]}" if name in TABLES else match[0]

    return re.sub(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", fill, text, flags=re.DOTALL)


def main(options: PagesOptions) -> None:
    """Rewrite every page, and the pictures if asked to."""
    for page in PAGES:
        write_atomically(page, fill_page(page.read_text()).encode())
    if options.figures:
        for name, draw in PICTURES.items():
            write_atomically(FIGURES / name, draw())


if __name__ == "__main__":
    run_command(PagesOptions, main, "python -m benchmarks.pages")
