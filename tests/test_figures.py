"""The picture of a run."""

import pytest

from recipe import console, run
from recipe.checkpoint import load_checkpoint


@pytest.mark.parametrize(("dataset", "goal"), [("mnist", True), ("digits", False)])
def test_the_goal_is_drawn_where_it_is_the_goal(dataset, goal, real_runs, monkeypatch):
    drawn, encode = [], console.encode_png
    monkeypatch.setattr(run, "encode_png", lambda figure: drawn.append(figure) or encode(figure))
    checkpoint = load_checkpoint(real_runs["torch"].checkpoint)
    checkpoint.config["data"]["name"] = dataset
    content = run.draw_curves(checkpoint)
    assert content.startswith(b"\x89PNG")
    assert content.endswith(b"IEND\xaeB`\x82")
    left, right = drawn[0].axes
    assert len(left.lines[0].get_xdata()) == checkpoint.step
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["train", "validation", *["goal: 99.4 %"] * goal]
    assert drawn[0].get_suptitle() == f"net9954, tuned, seed 0, torch, {dataset}"
