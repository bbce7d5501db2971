"""The tables of docs/census.md, from results/census.jsonl."""

from typing import Any

from benchmarks.record import Row, grouped, read_rows
from benchmarks.tables import describe_origin, make_table

COMMAND = "benchmarks.census --pairs NAMES"


def first_sight() -> list[Row]:
    """Of each pair the first measurement, before it was used to mend anything."""
    return [rows[0] for rows in grouped(read_rows("census", what="model"), "pair")]


def now() -> list[Row]:
    """Of each pair the last measurement."""
    return [rows[-1] for rows in grouped(read_rows("census", what="model"), "pair")]


def count(rows: list[Row]) -> tuple[int, int]:
    """How many pairs could be compared, and of how many a second way agrees with the verdict."""
    compared = [row for row in rows if row["comparable"]]
    return len(compared), sum(row["confirmed"] for row in compared)


def summary() -> str:
    """How many pairs there are, and how many verdicts are right at first sight and now."""
    before, rows = count(first_sight()), now()
    after, different = count(rows), [row for row in rows if row["equal"] is False and row["confirmed"]]
    broken = [row for row in rows if not row["comparable"]]
    text = f"Of {before[0]} pairs {before[1]} verdicts were right at first sight; now {after[1]} of {after[0]} are. "
    text += f"{len(different)} ports differ from their originals, and each difference is confirmed without lockstep"
    return text + (f"; {len(broken)} more fail by themselves." if broken else ".")


def pairs_table() -> str:
    """Every pair, those that differ first."""
    rows = sorted(now(), key=lambda row: (row["equal"] is True, not row["comparable"]))
    return make_table(
        "pair | port | verdict | outputs apart, float32 | after the change | original / port | cause",
        "`{pair}` | {flavour} | {word} | {before} | {after} | {lines} | {change}",
        [row | _words(row) for row in rows],
        COMMAND,
    )


def _words(row: Row) -> dict[str, Any]:
    first = (row.get("differences") or [{}])[0]
    near = "float32" in row["verdict"].split(":")[0]
    word = {True: "equal to rounding" if near else "equal", False: "different", None: "none"}[row["equal"]]
    lines = " / ".join(filter(None, (first.get("reference"), first.get("port")))) or None
    numbers = {
        key: f"{row[name]:.0e}" if isinstance(row[name], float) else None
        for key, name in (("before", "plain"), ("after", "changed"))
    }
    return {"word": word if row["confirmed"] else f"**{word}**, wrong", "lines": lines} | numbers


def optimizers_table() -> str:
    """Every optimizer and schedule of PyTorch beside Optax's."""
    rows = [rows[-1] for rows in grouped(read_rows("census"), "what", "name") if rows[0]["what"] != "model"]

    def words(far: float | None, step: int | None) -> str | None:
        return None if far is None else f"{far:.0e}" + (f", from step {step}" if step else "")

    shown = [
        row
        | {
            "same": words(row["same_name"], row["same_name_step"]),
            "form": words(row["equal_form"], row["equal_form_step"]),
        }
        for row in rows
    ]
    return make_table(
        "PyTorch | Optax's by the same name | the equal form | which",
        "{name} | {same} | {form} | {settings}",
        shown,
        "benchmarks.census --pairs optimizers",
    )


def origin() -> str:
    """Where and when the pairs were compared."""
    return describe_origin(now())
