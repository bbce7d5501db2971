"""The documents say what the results say, and README's commands are the ones that are run."""

import dataclasses
import re

import pytest

from benchmarks import readme
from benchmarks.lockstep import turn_everything_on
from benchmarks.pages import PAGES
from benchmarks.tables import ROOT, fill_tables, load_results
from recipe.recipes import get_recipe

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_what_the_results_say(name):
    page = (ROOT / name).read_text()
    assert fill_tables(page, PAGES[name]) == page, "run python -m benchmarks.pages"


def test_a_figure_that_was_changed_by_hand_is_seen():
    changed = re.sub(r"99\.\d\d", "99.99", README)
    assert changed != README
    assert fill_tables(changed, readme.TABLES) != changed


def test_every_table_of_readme_is_measured():
    for name in readme.TABLES:
        assert f"<!-- {name} -->\n|" in README


def test_a_table_without_a_place_is_an_error():
    with pytest.raises(ValueError, match="0 places for the table 'speed'"):
        fill_tables("nothing", {"speed": str})


def test_ci_runs_readmes_test_command():
    ci = (ROOT / ".ci" / "run").read_text()
    install, test = next(
        line.split(" && ") for line in README.splitlines() if line.endswith("&& python -m pytest")
    )
    assert install.replace("pip install", "pip install -q") in ci
    assert f"\n{test}\n" in ci


@pytest.mark.parametrize("name", PAGES)
def test_pictures_and_pages_exist(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("pattern", ["seeds-*.json", "lockstep-*.json"])
def test_results_are_of_the_recipes_as_they_are(pattern):
    for result in load_results(pattern):
        recipe = get_recipe(result["network"], result["recipe"]["name"])
        possible = (recipe, turn_everything_on(recipe)) if pattern.startswith("lockstep") else (recipe,)
        assert result["recipe"] in map(dataclasses.asdict, possible), result["command"]
