"""The documents say what the results say, and the results say where they come from."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import rows
from benchmarks.pages import FIGURES, PAGES, PICTURES, ROOT, Table, fill_page, make_table
from recipe.provenance import describe_machine
from recipe.record import MACHINES, RESULTS, read_rows

DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "demo" / "README.md",
    ROOT / "models" / "README.md",
]
FILES = sorted(RESULTS.glob("*.jsonl"))
MACHINE_PATHS = re.compile(r"/work/|/home/|/root/|/Users/")
ROW = {"command": "python -m x --publish", "date": "2026-01-02", "machine": "processor-amx-1"}
ROW |= {"versions": {"torch": "2"}, "n": 3, "name": "a"}


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_what_the_results_say(page):
    text = (ROOT / page).read_text()
    assert fill_page(text, PAGES[page]) == text, "run python -m benchmarks.pages"


def test_readme_has_the_digest_of_the_whole_run():
    row = read_rows("lockstep", run=rows.WHOLE_RUNS[0])[-1]
    assert row["torch_digest"] == row["jax_digest"]
    assert row["torch_digest"] in (ROOT / "README.md").read_text()


def test_a_figure_that_was_changed_by_hand_is_seen():
    page = "docs/accuracy.md"
    text = (ROOT / page).read_text()
    changed = re.sub(r"99\.5\d", "99.99", text, count=1)  # the first is in a table
    assert changed != text
    assert fill_page(changed, PAGES[page]) == text


def test_a_table_has_exactly_one_place():
    table = Table("speed", lambda: [ROW], "name | n", "{name} | {n}")
    with pytest.raises(ValueError, match="0 places for the table 'speed'"):
        fill_page("nothing", [table])


def test_a_table_needs_a_measurement():
    with pytest.raises(ValueError, match="no measurement for the table 'speed'"):
        make_table(Table("speed", list, "name", "{name}"))


def test_a_table_says_where_its_numbers_come_from():
    rows = [ROW, {**ROW, "n": None}, {**ROW, "n": -1, "machine": "epyc-avx-512-2"}]
    assert make_table(
        Table("t", lambda: rows, "name | count | none", "`{name}` | {n:.1f} | {m:,}", "python -m x")
    ) == (
        "| name | count | none |\n| --- | ---: | ---: |\n"
        "| `a` | 3.0 |  |\n| `a` |  |  |\n| `a` | -1.0 |  |\n\n"
        "Measured on Intel Xeon with AMX, 1 core (torch 2, 2026-01-02) "
        "and on AMD EPYC with AVX-512, 2 cores (torch 2, 2026-01-02). Again: `python -m x`."
    )


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page: Path):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    assert not MACHINE_PATHS.search(text)
    assert "not measured yet" not in text.lower()


def test_every_picture_is_made_from_the_results():
    screenshot = {"demo.png"}  # of the page in demo/
    assert {path.name for path in FIGURES.iterdir()} == set(PICTURES) | screenshot
    assert len(PICTURES) <= 6
    assert PICTURES["accuracy.png"]().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_row_says_where_it_comes_from(path: Path):
    machines = json.loads((RESULTS / MACHINES).read_text())
    rows = read_rows(path.stem)
    assert rows
    for row in rows:
        assert row["command"].startswith("python -m "), row
        assert re.fullmatch(r"[0-9a-f]{7,40}\+?", row["commit"]), row
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]), row
        assert row["machine"] in machines, row
        assert "python" in row["versions"], row
        assert row.get("dataset", "mnist") == "mnist", row


def test_machines_are_described_as_a_measurement_would():
    machines = json.loads((RESULTS / MACHINES).read_text())
    for machine in machines.values():
        assert machine.keys() == describe_machine().keys()
    assert len({json.dumps(machine) for machine in machines.values()}) == len(machines)


def test_the_record_is_small_and_names_no_machines_path():
    files = [path for path in RESULTS.iterdir() if path.is_file()]
    assert len(files) <= 10
    assert sum(path.stat().st_size for path in files) < 400_000
    for path in files:
        if path.suffix in (".json", ".jsonl"):
            assert not MACHINE_PATHS.search(path.read_text()) and "/tmp/" not in path.read_text(), path


def test_the_list_of_benchmarks_fits_a_terminal(capsys):
    benchmarks.main()
    out = capsys.readouterr().out
    assert "python -m benchmarks.accuracy --seeds 1" in out
    assert max(map(len, out.splitlines())) <= 80
