"""Run the bench of faults and write its table into docs/porting.md: ``python -m tests.pairs [PAIR ...]``."""

import importlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lockstep
from lockstep.result import Result
from tests.pairs import Fault

PAIRS = (
    "net9954", "net10040", "resnet", "mlp", "transformer", "encoder", "recurrent", "upsampling", "training",
    "momentum", "mobilenet",
)  # fmt: skip
PAGE = Path(__file__).parent.parent.parent / "docs" / "porting.md"
START, END = "<!-- faults -->\n", "<!-- end -->"


class Found(NamedTuple):
    """What a comparison found for one fault."""

    pair: str
    fault: str
    where: bool  # the right layer and kind
    cause: bool
    result: Result


def compare(pair: str, fault: str = "", seed: int = 0) -> Result:
    """Compare one pair with a fault in its Flax side; the seed is of weights and inputs."""
    module = importlib.import_module(f"tests.pairs.{pair}")
    expected: Fault | None = module.FAULTS.get(fault)
    options = {
        **(module.options(fault) if hasattr(module, "options") else {}),
        **(expected.options if expected else {}),
    }
    inputs = module.inputs(np.random.default_rng(seed))
    return lockstep.compare(module.torch_model(seed), module.flax_model(fault), inputs, **options)


def faults(pair: str) -> dict[str, Fault]:
    """The faults of a pair."""
    return importlib.import_module(f"tests.pairs.{pair}").FAULTS


def find(pair: str, fault: str) -> Found:
    """Compare a faulty pair, and judge what is found."""
    expected, result = faults(pair)[fault], compare(pair, fault)
    first = result.first
    where = first is not None and (first.name, first.what) == (expected.first, expected.what)
    cause = first is not None and bool(expected.cause) and bool(re.search(expected.cause, first.cause))
    return Found(pair, fault, where, cause, result)


def line(found: Found) -> str:
    """A row of the table."""
    first = found.result.first
    close = [row.allclose for row in found.result.rows if row.allclose is not None]
    said = "equal" if close and all(close) else "different"
    what = "nothing" if first is None else f"`{first.name}`: {first.what}"
    cause = "" if first is None else first.cause.replace("|", "\\|")
    verdict = "" if found.where else " (wrong place)"
    verdict += "" if found.cause or not cause else " (wrong cause)"
    name = found.fault.replace("_", " ")
    return f"| {found.pair} | {name} | {what} | {cause or 'none named'}{verdict} | {said} |"


def main() -> None:
    """Rewrite the rows of the pairs that the command line names, or all."""
    new = [line(find(pair, fault)) for pair in sys.argv[1:] or PAIRS for fault in faults(pair)]
    before, rest = PAGE.read_text().split(START)
    table, after = rest.split(END, 1)
    rows = {tuple(row.split(" | ")[:2]): row for row in table.splitlines() if row.startswith("| ")}
    rows |= {tuple(row.split(" | ")[:2]): row for row in new}
    every = [(pair, fault.replace("_", " ")) for pair in PAIRS for fault in faults(pair)]
    kept = [rows[f"| {pair}", fault] for pair, fault in every if (f"| {pair}", fault) in rows]
    where = sum("(wrong place)" not in row for row in kept)
    cause = sum("(wrong" not in row and "| none named" not in row for row in kept)
    lines = [
        f"Of {len(kept)} faults {where} are found in the right place and as the right kind, "
        f"{cause} with the right cause.",
        "",
        "| pair | fault | first difference | likely cause | `allclose(outputs, 1e-3)` |",
        "| --- | --- | --- | --- | --- |",
        *kept,
        "",
    ]
    PAGE.write_text(before + START + "\n".join(lines) + END + after)
    print(lines[0])


if __name__ == "__main__":
    main()
