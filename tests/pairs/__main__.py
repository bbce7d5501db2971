"""Run the bench of faults and write its table into docs/faults.md: ``python -m tests.pairs [PAIR ...]``."""

import importlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lockstep
from lockstep.result import Place, Result
from tests.pairs import Fault

PAIRS = (
    "net9954", "net10040", "resnet", "mlp", "transformer", "encoder", "recurrent", "upsampling", "training",
    "momentum", "mobilenet",
)  # fmt: skip
FOLDER = Path(__file__).parent


class Found(NamedTuple):
    """What a comparison found for one fault."""

    pair: str
    fault: str
    place: bool
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


def fault_lines(pair: str, fault: str) -> set[int]:
    """Lines of a pair's file that name a fault, and the block that such a line begins."""
    lines = (FOLDER / f"{pair}.py").read_text().splitlines()
    found = set()
    for number, line in enumerate(lines, start=1):
        if f'"{fault}"' not in line or "Fault(" in line:
            continue
        found.add(number)
        for later, text in enumerate(lines[number:], start=number + 1):
            if not line.rstrip().endswith(":") or indent(text) <= indent(line):
                break
            found.add(later)
    return found


def indent(line: str) -> int:
    """How far a line is indented."""
    return len(line) - len(line.lstrip())


def find(pair: str, fault: str) -> Found:
    """Compare a faulty pair, and judge what is found."""
    expected, result = faults(pair)[fault], compare(pair, fault)
    first = result.first
    if first is None:  # what is no difference in float64, such as a cast to float32, is noted
        noted = any(re.search(expected.cause, note) for note in result.notes)
        return Found(pair, fault, noted, noted, result)
    places: list[Place] = [place for place in (first.reference, first.port) if place]
    here = {line for place in places for name, line in place.sources if Path(name).name == f"{pair}.py"}
    modules = {place.module.replace("/", ".") for place in places}
    inside = any(module == expected.module or module.startswith(f"{expected.module}.") for module in modules)
    cause = bool(expected.cause) and bool(re.search(expected.cause, first.cause))
    return Found(pair, fault, inside or cause or bool(here & fault_lines(pair, fault)), cause, result)


def line(found: Found) -> str:
    """A row of the table."""
    first = found.result.first
    what = "equal, with a note" if first is None else f"{first.kind}: {first.difference}".split(" of its")[0]
    cause = ("" if first is None else first.cause).replace("|", "\\|")
    verdict = "" if found.place else " (wrong place)"
    verdict += "" if found.cause or not cause else " (wrong cause)"
    return f"| {found.pair} | {found.fault.replace('_', ' ')} | {what} | {cause or 'none named'}{verdict} |"


def main() -> None:
    """Print the rows of the pairs that the command line names; of all pairs write the page too."""
    found = []
    for pair in sys.argv[1:] or PAIRS:
        for fault in faults(pair):
            found.append(find(pair, fault))
            print(line(found[-1]), flush=True)
    place, cause = (sum(one[i] for one in found) for i in (2, 3))
    words = f"Of {len(found)} faults {place} are found in the right place, {cause} with the right cause."
    print(words)
    if not sys.argv[1:]:
        from tests.ports.__main__ import write_table

        head = ["| pair | fault | first difference | cause |", "| --- | --- | --- | --- |"]
        write_table("pairs", [words, "", *head, *(line(one) for one in found)])


if __name__ == "__main__":
    main()
