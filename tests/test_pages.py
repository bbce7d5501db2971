"""The documents say what the results say."""

import re
from pathlib import Path

import pytest

from benchmarks import lockstep
from benchmarks.pages import FIGURES, PAGES, PICTURES, ROOT, TABLES, fill_page
from benchmarks.tables import make_table

DOCUMENTS = [*PAGES, ROOT / "benchmarks" / "README.md", ROOT / "demo" / "README.md", ROOT / "CONTRIBUTING.md"]
ROW = {"date": "2026-01-02", "machine": "processor-amx-1", "versions": {"torch": "2"}, "n": 3, "name": "a"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_what_the_results_say(page: Path):
    text = page.read_text()
    assert fill_page(text) == text, "run python -m benchmarks.pages"


def test_every_table_has_exactly_one_place():
    places = re.findall(r"<!-- ([\w-]+) -->", "".join(page.read_text() for page in PAGES))
    assert sorted(name for name in places if name in TABLES) == sorted(TABLES)


def test_readme_has_the_digest_of_the_whole_run():
    row = lockstep.find_run(lockstep.BITWISE_RUN)
    assert row["torch_digest"] == row["jax_digest"]
    assert row["torch_digest"] in (ROOT / "README.md").read_text()


def test_a_figure_that_was_changed_by_hand_is_seen():
    text = (ROOT / "docs" / "accuracy.md").read_text()
    changed = re.sub(r"99\.5\d", "99.99", text, count=1)  # the first is in a table
    assert changed != text and fill_page(changed) == text


def test_a_table_says_where_its_numbers_come_from():
    rows = [ROW, ROW | {"n": None}, ROW | {"n": -1, "machine": "epyc-avx-512-2"}]
    assert make_table("name | count", "`{name}` | {n:.1f}", rows, "x") == (
        "| name | count |\n| --- | ---: |\n| `a` | 3.0 |\n| `a` |  |\n| `a` | -1.0 |\n\n"
        "Measured on Intel Xeon with AMX, 1 core (2026-01-02); AMD EPYC with AVX-512, 2 cores (2026-01-02); "
        "torch 2. Again: `python -m x`."
    )
    with pytest.raises(ValueError, match="no measurement"):
        make_table("name", "{name}", [])


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_links_and_pictures_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_picture_is_made_from_the_results():
    screenshot = {"demo.png"}  # of the page in demo/
    assert {path.name for path in FIGURES.iterdir()} == set(PICTURES) | screenshot
    assert PICTURES["accuracy.png"]().startswith(b"\x89PNG")
