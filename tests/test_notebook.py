"""docs/lockstep.ipynb runs from top to bottom; its own assertions compare what it computes."""

import json

import pytest

from tests.helpers import ROOT

NOTEBOOK = ROOT / "docs" / "lockstep.ipynb"
MAX_BYTES = 200_000  # with its outputs


def test_the_notebook_is_small_and_ran_in_order():
    content = NOTEBOOK.read_bytes()
    cells = [cell for cell in json.loads(content)["cells"] if cell["cell_type"] == "code"]
    assert len(content) < MAX_BYTES
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_notebook_runs():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
