"""What the coverage benchmark counts."""

import json

import pytest

from benchmarks.coverage import CoverageOptions, main, summarise
from recipe.errors import UserError


def test_files_are_added_up_by_package():
    def file(statements, covered, branches, taken):
        counts = (statements, covered, branches, taken)
        names = ("num_statements", "covered_lines", "num_branches", "covered_branches")
        return {"summary": dict(zip(names, counts, strict=True))}

    found = summarise(
        {"recipe/a.py": file(5, 4, 2, 1), "recipe/b.py": file(1, 1, 0, 0), "export/a.py": file(3, 0, 2, 0)}
    )
    assert list(found["recipe"].values()) == [6, 5, 2, 1]
    assert list(found["export"].values()) == [3, 0, 2, 0]


def test_what_the_program_of_a_test_runs_counts(tmp_path):
    """The test does no more than start a run; its own process, which only imports, reaches less than half."""
    out = tmp_path / "found.json"
    main(CoverageOptions(("tests/test_faults.py::test_what_an_encoding_lacks_is_escaped",), out))
    found = json.loads(out.read_text())["packages"]["recipe"]
    assert found["covered_lines"] > 0.6 * found["num_statements"]


def test_failing_tests_are_an_error(tmp_path):
    with pytest.raises(UserError, match="pytest ended with 4"):
        main(CoverageOptions(("tests/no_such_file.py",), tmp_path / "found.json"))
    assert not (tmp_path / "found.json").exists()
