"""Compare every port with its reference, right and faulty: ``python -m tests.ports [PORT ...]``.

Without names it writes the table of docs/faults.md.
"""

import importlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import lockstep
from lockstep.result import Result
from tests.ports import CASES, RIGHT, Case

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent.parent / "docs" / "faults.md"


class Judged(NamedTuple):
    """What a comparison said of a faulty port."""

    different: bool
    place: bool
    cause: bool
    wrong_cause: bool
    result: Result


def compare(case: Case, fault: str | bool) -> Result:
    """Compare a port in its right form (no fault) or in a faulty one."""
    module = importlib.import_module(f"tests.ports.{case.port}")
    module = importlib.reload(module)  # other functions, because JAX keeps what it traced of a function
    vars(module).update(case.variables, FAULT=fault or type(module.FAULT)())
    torch.manual_seed(0)
    given = module.inputs(np.random.default_rng(0))
    options = dict(case.options)
    if hasattr(module, "port_inputs"):
        options["port_inputs"] = module.port_inputs(given)
    if hasattr(module, "port_loss"):
        options["loss"] = module.reference_loss, module.port_loss
    if hasattr(module, "port_optimizer"):
        options["optimizers"] = module.reference_optimizer, module.port_optimizer()
    return lockstep.compare(module.reference(), module.port(), given, float32=False, **options)


def faulty_lines(case: Case) -> set[tuple[str, int]]:
    """The lines of a fault: those with the word FAULT and with the fault's name if it has one."""
    path = FOLDER / f"{case.port}.py"
    name = "" if case.fault is True else str(case.fault)
    lines = enumerate(path.read_text().splitlines(), start=1)
    return {(path.name, number) for number, line in lines if "FAULT" in line and name in line}


def judge(case: Case) -> Judged:
    """Compare a faulty port, and say what is right of what was found."""
    result = compare(case, case.fault)
    first = result.first
    if first is None:
        return Judged(not result.equal, False, False, False, result)
    words = re.sub(r"\w+\.py", "", first.cause)  # a file's name tells nothing
    cause = bool(words) and bool(re.search(case.cause, words))
    sources = {
        (Path(name).name, line)
        for side in (first.reference, first.port)
        if side
        for name, line in side.sources
    }
    place = cause if case.by_cause else bool(sources & faulty_lines(case)) or cause
    return Judged(True, place and first.kind in case.kinds, cause, bool(first.cause) and not cause, result)


def row(case: Case, judged: Judged) -> str:
    """A row of the table of docs/faults.md."""
    first = judged.result.first
    what = "nothing" if first is None else f"{first.kind}: {first.difference}"
    cause = (first.cause if first else "") or "none named"
    verdict = "" if judged.place else " (wrong place)"
    verdict += " (wrong cause)" if judged.wrong_cause else ""
    return " | ".join(
        ["", str(case), what.replace("|", "\\|"), cause.replace("|", "\\|") + verdict, ""]
    ).strip()


def count(judged: list[Judged]) -> str:
    """How many faults were found, where and why, in one line."""
    sums = [sum(one[i] for one in judged) for i in range(4)]
    return "of {} faults {} are found, {} in the right place; {} causes are right, {} wrong".format(
        len(judged), *sums
    )


def main() -> None:
    """Print what is said of each port that the command line names, or of all."""
    cases = [case for case in CASES if not sys.argv[1:] or case.port in sys.argv[1:]]
    judged, rows = [], []
    for case in cases:
        right = compare(case, "") if case in RIGHT else None
        if right and not right.equal:
            print(f"FALSE ALARM {case}\n{right}")
        judged.append(judge(case))
        rows.append(row(case, judged[-1]))
        print(rows[-1], flush=True)
    print(count(judged))
    if len(cases) == len(CASES):
        heading = ["| port, and its fault | first difference | cause |", "| --- | --- | --- |"]
        write_table("ports", [f"O{count(judged)[1:]}.", "", *heading, *rows])


def write_table(name: str, lines: list[str]) -> None:
    """Replace a part of docs/faults.md."""
    table = "\n".join(["", *lines, ""])
    pattern = re.compile(f"(?<=<!-- {name} -->).*?(?=<!-- end -->)", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda _: table, PAGE.read_text(), count=1))


if __name__ == "__main__":
    main()
