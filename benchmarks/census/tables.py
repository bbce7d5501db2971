"""The tables of docs/census.md, from results/census.jsonl."""

from typing import Any

from benchmarks.record import Row, grouped, read_rows
from benchmarks.tables import make_table

COMMAND = "benchmarks.census --pairs NAMES"


def first_sight() -> list[Row]:
    """Of each pair the first measurement, before it was used to mend anything."""
    return [rows[0] for rows in grouped(read_rows("census", what="model"), "pair")]


def now() -> list[Row]:
    """Of each pair the last measurement."""
    return [rows[-1] for rows in grouped(read_rows("census", what="model"), "pair")]


def compared(rows: list[Row]) -> list[Row]:
    """The pairs that could be compared: both sides can be built."""
    return [row for row in rows if row["comparable"]]


def is_right(row: Row) -> bool:
    """Whether there is a verdict, a difference is confirmed, and no second way contradicts what is equal."""
    return row["confirmed"] is True or (row["equal"] is True and row["confirmed"] is None)


def summary() -> str:
    """How many pairs there are, and how many verdicts are right at first sight and now."""
    before, after = compared(first_sight()), compared(now())
    right = [sum(map(is_right, rows)) for rows in (before, after)]
    differ = [row for row in after if row["equal"] is False and row["confirmed"]]
    same = [row for row in after if row["equal"]]
    checked = sum(row["confirmed"] is True for row in same)
    return (
        f"Of {len(before)} pairs {right[0]} verdicts were right at first sight; "
        f"now {right[1]} of {len(after)} are. {len(differ)} ports differ from their originals, and each of "
        f"these differences is confirmed without Lockstep. {len(same)} are equal; the second way was run on "
        f"{checked} of these. {len(now()) - len(after)} more fail before they can be compared."
    )


def claim() -> str:
    """README's line."""
    rows = compared(now())
    differ = sum(row["equal"] is False and bool(row["confirmed"]) for row in rows)
    return f"{differ / len(rows):.0%} of the public JAX ports that were compared differ from their originals"


def false_alarms() -> str:
    """What a user has to expect: the verdicts at first sight."""
    rows = compared(first_sight())
    alarms = [row for row in rows if row["equal"] is False and not row["confirmed"]]
    failed = [row for row in rows if row["equal"] is None]
    return (
        f"On {len(rows)} public ports that it had not seen, Lockstep called {len(alarms)} different that are "
        f"equal, and gave an error for {len(failed)} ([census.md](census.md))."
    )


def pairs_table() -> str:
    """Every pair, those that differ first."""
    rows = sorted(now(), key=lambda row: (row["equal"] is True, not row["comparable"]))
    return make_table(
        "pair | port | verdict | apart | after the change | original / port | cause",
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
    if not row["comparable"]:
        lines = row["verdict"]
    return {
        "word": word if is_right(row) or not row["comparable"] else f"{word}, wrong",
        "lines": lines,
    } | numbers


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
