"""What README and docs/porting.md show is what their programs print."""

import re

import pytest

from lockstep import pair
from tests.helpers import ROOT

pytestmark = pytest.mark.subprocess
README, BLOCKS = (
    re.findall(r"```(?:python)?\n(.*?)```", (ROOT / page).read_text(), re.S)
    for page in ("README.md", "docs/porting.md")
)
TEN, DIFFERENT = README[:2]
EQUAL = BLOCKS[0]
PAIR = next(block for block in BLOCKS if "def inputs(rng)" in block)
FIRST = next(block for block in BLOCKS if block.startswith("different"))


def without_sizes(text):
    """The example's weights are random."""
    return re.sub(r"\d\.\de[+-]\d\d", "", text)


def test_ten_lines(tmp_path, capsys):
    path = tmp_path / "ten.py"
    for source, said in ((TEN, DIFFERENT), (TEN.replace('p["bias"]', 'p["bias"], approximate=False'), EQUAL)):
        path.write_text(source)
        exec(compile(source, str(path), "exec"), {})
        assert capsys.readouterr().out == said


def test_file_and_command(tmp_path, capsys):
    first = PAIR.replace("strides=2, rngs", "strides=2, padding=1, rngs")
    second = first.replace("x.reshape", "x.transpose(0, 3, 1, 2).reshape")
    said = {"a": FIRST, "b": "different: 1 difference\n\n1. order: ", "c": "equal in float64"}
    for name, source in (("a", PAIR), ("b", first), ("c", second)):
        path = tmp_path / name / "pair.py"
        path.parent.mkdir()
        path.write_text(source)
        assert pair.main([str(path), "--no-float32"]) == (name != "c")
        out = capsys.readouterr().out
        assert without_sizes(out).startswith(without_sizes(said[name])), out
