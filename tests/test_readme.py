"""README says what the results say, and its commands are the ones that are run."""

import re
from pathlib import Path

from benchmarks.readme import TABLES, render

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_tables_are_what_the_results_say():
    assert render(README) == README, "run python -m benchmarks.readme"
    changed = re.sub(r"99\.\d\d", "99.99", README)
    assert changed != README
    assert render(changed) != changed, "a figure that was changed by hand is seen"


def test_every_table_has_its_place():
    for name in TABLES:
        assert f"<!-- {name} -->\n|" in README


def test_ci_runs_readmes_test_command():
    ci = (ROOT / ".ci" / "run").read_text()
    install, test = next(
        line.split(" && ") for line in README.splitlines() if line.endswith("&& python -m pytest")
    )
    assert install.replace("pip install", "pip install -q") in ci
    assert f"\n{test}\n" in ci


def test_pictures_and_pages_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
