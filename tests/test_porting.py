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
FIRST, SECOND = [block for block in BLOCKS if block.startswith("different")]


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
    for name, source, said in (("a", PAIR, FIRST), ("b", first, SECOND), ("c", second, None)):
        path = tmp_path / name / "pair.py"
        path.parent.mkdir()
        path.write_text(source)
        assert pair.main([str(path), "--no-float32"]) == (0 if said is None else 1)
        out = capsys.readouterr().out
        assert without_sizes(out) == (without_sizes(said) if said else out), out
        assert said or out.startswith("equal in float64"), out
