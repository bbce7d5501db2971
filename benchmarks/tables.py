"""Tables in the documents, made from ``results/``."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"torch": "PyTorch", "jax": "Flax"}

Tables = Mapping[str, Callable[[], str]]


def load_result(name: str) -> dict[str, Any] | None:
    """The result file of that name, if there is one."""
    path = ROOT / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def load_results(pattern: str) -> Iterator[dict[str, Any]]:
    """The result files whose names match, in alphabetical order."""
    for path in sorted((ROOT / "results").glob(pattern)):
        yield json.loads(path.read_text())


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; all columns but the first two are right-aligned."""
    rule = ["---" if column < 2 else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def describe_origin(result: dict[str, Any]) -> str:
    """Where, when and by what command a result came about, as a sentence."""
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", "jax", "flax"))
    device = result["gpu"] or f"{result['processor']}, {result['cores']} cores"
    return f"{device}; {versions}; {result['date']}; `{result['command']}`."


def unmeasured(command: str) -> str:
    """What stands where there is no result."""
    return f"Not measured yet: `python -m {command}`."


def fill_tables(text: str, tables: Tables) -> str:
    """The text with each table put between its ``<!-- NAME -->`` and the next ``<!-- end -->``.

    Raises:
        ValueError: a table has not exactly one place.
    """
    for name, table in tables.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, found = pattern.subn(lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", text)
        if found != 1:
            raise ValueError(f"there are {found} places for the table {name!r}")
    return text
