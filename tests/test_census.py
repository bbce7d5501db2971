"""The census: three of its pairs, where transformers is installed with its Flax models."""

import pytest

from benchmarks.census import optimizers
from benchmarks.census.confirm import CHANGES

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


@pytest.mark.parametrize(
    ("name", "line"),
    [("bert", None), ("electra", "modeling_flax_electra.py"), ("mistral_window", "modeling_flax_mistral.py")],
)
def test_verdict_is_what_a_second_way_says(name, line):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "FlaxBertModel"):
        pytest.skip("transformers 5 has no Flax models")
    from benchmarks.census.__main__ import PAIRS, measure

    row = measure(PAIRS[name], name, 600)
    assert row["confirmed"] and row["equal"] == (line is None), row
    assert line is None or row["differences"][0]["port"].startswith(line)


def test_the_equal_form_of_an_optimizer_is_equal():
    rows = [row for row in optimizers.measure() if row["equal_form"] is not None]
    assert len(rows) > 20 and all(row["equal_form_step"] is None for row in rows)


def test_every_change_has_a_cause():
    assert all(words and (settings or inputs) for words, settings, inputs in CHANGES.values())
