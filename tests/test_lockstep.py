"""The step-by-step comparison: its measures, command and picture. What it finds: test_parity.py."""

import dataclasses

import numpy as np
import pytest

import jax_impl.train
import torch_impl.train
from benchmarks import record
from lockstep import figure, runs
from lockstep.runs import Comparison, run_lockstep, summarise
from lockstep.twins import LockstepOptions, main
from recipe import data
from recipe.console import UserError
from recipe.networks import get_network
from recipe.recipes import get_recipe
from tests import fake
from tests.helpers import make_trainer

SMALL = LockstepOptions(network="net9954", recipe="reference", steps=6, dataset="digits", device="cpu")


TINY = "4 pool dropout 4 average 10x1"  # quick to compile


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, so that nothing is written into the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "bench"


@pytest.fixture
def fakes(monkeypatch):
    for package in (torch_impl.train, jax_impl.train):
        monkeypatch.setattr(package, "Trainer", fake.Trainer)


def test_it_leaves_a_row_its_series_and_a_picture(folder, capsys):
    main(dataclasses.replace(SMALL, network=TINY))
    (row,) = record.read_rows("lockstep", folder)
    assert (row["network"], row["recipe"], row["precision"]) == (TINY, "reference", "float64")
    assert (row["steps"], row["dataset"], row["everything"], row["dropout"]) == (6, "digits", False, 0.3)
    assert row["versions"].keys() >= {"torch", "jax", "flax"}
    for pair in ("torch_jax", "torch_torch", "jax_jax"):
        assert 0 <= row[f"{pair}_loss_rms"] <= row[f"{pair}_loss"] < 1e-10
        assert all(
            0 < row[f"{pair}_{kind}"] < 1e-9 for kind in ("gradient", "parameter", "momentum", "statistic")
        )
        assert f"{pair}_average" not in row, "this recipe has no average"
        assert row[f"{pair}_predictions"] == 0
    series = figure.load_series(folder, row["run"])
    assert series["torch_jax"].max() == row["torch_jax_loss"]
    np.testing.assert_array_equal(series["step"], [1, 2, 3, 4, 5, 6])
    np.testing.assert_allclose(series["torch"], series["jax"], atol=1e-10)
    assert (folder / f"lockstep-{row['run']}.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "\nsame run: all losses within " in printed and "rms" not in printed
    assert max(len(line) for line in printed.splitlines()) <= 80


def test_a_published_row_goes_to_results_and_keeps_the_others(folder, tmp_path, monkeypatch, fakes):
    results = tmp_path / "results"
    monkeypatch.setattr(record, "RESULTS", results)
    blanks = data.Dataset("mnist", "", *fake.load_blanks())
    monkeypatch.setattr(data, "load", lambda *_: blanks)
    for steps in ("all", 3, 3):
        main(dataclasses.replace(SMALL, steps=steps, publish=True, noise_floor=False, everything=True))
    names = [f"net9954-reference-everything-float64-{steps}" for steps in (209, 3, 3)]
    assert [row["run"] for row in record.read_rows("lockstep", results)] == names
    assert [len(figure.load_series(results, name)["step"]) for name in names] == [105, 3, 3]
    assert {path.suffix for path in folder.iterdir()} == {".png"}


@pytest.mark.slow
def test_float32_parts_but_no_further_than_a_framework_from_itself(digits):
    """44 steps of `tuned`. The last 24 are a noisy estimate of both, so only the magnitude is checked."""
    network, recipe = get_network(TINY), get_recipe(TINY, "tuned")
    trainers = [make_trainer(name, network, recipe, digits, "float32") for name in ("torch", "jax") * 2]
    _, comparisons = run_lockstep(
        trainers, network, recipe, len(digits.train_images), 44, precision="float32"
    )
    row = summarise(comparisons)
    assert 0 < row["torch_jax_loss_rms"] < 10 * max(row["torch_torch_loss_rms"], row["jax_jax_loss_rms"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "net1"}, "net1"),
        ({"recipe": "best"}, "best"),
        ({"steps": 0}, "--steps 0 is out of range; give 1 to 209"),
        ({"steps": 10**6}, "--steps"),
        ({"seed": -1}, "--seed"),
        ({"publish": True}, "--publish needs MNIST"),
    ],
)
def test_mistakes_are_named_before_any_step(changes, words, folder, fakes):
    with pytest.raises(UserError, match=words):
        main(dataclasses.replace(SMALL, **changes))
    assert not folder.exists()


def test_relative_difference():
    three_four, not_a_number = np.array([3.0, 4.0]), np.array([3.0, np.nan])
    assert runs.relative_difference(three_four, three_four) == 0
    assert runs.relative_difference(np.array([3.0, 4.5]), three_four) == pytest.approx(0.1)
    assert runs.relative_difference(np.zeros(2), np.zeros(2)) == 0
    assert runs.relative_difference(np.ones(2), np.zeros(2)) == np.inf
    assert runs.relative_difference(not_a_number, not_a_number) == np.inf, "a broken run equals nothing"


def test_kinds():
    names = ["conv1.weight", "norm1.running_var", "momentum/conv1.weight", "average/norm1.running_mean"]
    assert [runs.kind_of(name) for name in names] == ["parameter", "statistic", "momentum", "average"]


def test_the_gradient_follows_from_the_momentum_before_and_after():
    gradient, before = np.array([2.0, -1.0]), {"w": np.zeros(2), "momentum/w": np.array([4.0, 8.0])}
    after = {"w": np.ones(2), "momentum/w": 0.5 * before["momentum/w"] + gradient}
    observed = runs.add_gradients(after, before, 0.5)
    assert observed.keys() == {"w", "momentum/w", "gradient/w"}
    np.testing.assert_array_equal(observed["gradient/w"], gradient)


def test_a_comparison_keeps_the_largest_difference_and_its_tensor():
    reference = {"a.weight": np.ones(4), "b.weight": np.ones(4), "a.running_var": np.ones(4)}
    comparison = Comparison()
    comparison.add_step(-0.5, reference | {"b.weight": np.full(4, 1.25)}, reference)
    comparison.add_step(0.25, reference | {"a.weight": np.full(4, 1.125)}, reference)
    assert comparison.loss == [0.5, 0.25]
    assert comparison.unequal == [4, 4]
    assert comparison.largest["parameter"] == (0.25, "b.weight")
    assert comparison.largest["statistic"][0] == 0
    with pytest.raises(KeyError):
        comparison.add_step(0.0, {}, reference)


def test_the_summary_uses_the_settled_steps_for_the_rms():
    comparison = Comparison([9.0] * 20 + [3.0, 4.0], {"gradient": (2.0, "gradient/a")}, 7, [0, 3, 2])
    row = summarise({"torch_jax": comparison})
    assert row["torch_jax_loss"] == 9.0 and row["torch_jax_loss_rms"] == pytest.approx(np.sqrt(12.5))
    assert (row["torch_jax_unequal"], row["torch_jax_predictions"]) == (3, 7)
    assert runs.largest_tensor_difference(row) == row["torch_jax_gradient"] == 2.0


@pytest.mark.parametrize(
    ("precision", "loss", "unequal", "floor", "words"),
    [
        ("float64", [1e-16, 2e-16], [3, 9], None, "same run: all losses within 2.0e-16, bound 1e-10"),
        ("float64", [1e-16, 1e-3, 2e-3], [3, 9, 9], None, "the losses part at step 2, by 1.0e-03"),
        ("float64", [1e-16, np.nan], [3, 9], None, "not the same run: the losses part at step 2"),
        ("bitwise", [1e-16, 2e-16], [0, 0], None, "same run: the state is the same, bit for bit, after"),
        ("bitwise", [1e-16, 2e-16], [0, 4], None, "not the same run: after step 2, 4 of 10 numbers differ"),
        ("float32", [0.0, 1e-3], [9, 9], None, "float32: the losses part at step 2; rounding does that too"),
        ("float32", [0.0, 1e-3], [9, 9], 1e-3, "as rounding does: 0.7 times the noise floor, bound 10"),
        ("float32", [0.0, 1e-3], [9, 9], 1e-5, "more than rounding does: 70.7 times"),
        ("float32", [0.0, 0.0], [9, 9], None, "float32: the losses agree over all 2 steps"),
    ],
)  # fmt: skip
def test_the_verdict(precision, loss, unequal, floor, words):
    comparison = Comparison(loss, {"gradient": (2e-13, "gradient/a")}, 0, unequal)
    row = summarise({"torch_jax": comparison}) | {
        "precision": precision,
        "steps": len(loss),
        "state_numbers": 10,
    }
    if floor:
        row["jax_jax_loss_rms"] = floor
    assert words in runs.verdict(row, comparison)


def test_a_tensor_that_differs_is_named():
    comparison = Comparison([0.0], {"gradient": (1e-3, "gradient/a")}, 0, [1])
    row = summarise({"torch_jax": comparison}) | {"precision": "float64", "steps": 1}
    assert runs.verdict(row, comparison).startswith("not the same run: gradient/a differs by 1.0e-03")


def test_the_nudge_is_one_unit_in_the_last_place_of_every_weight():
    start = {
        "a.weight": np.array([1.0, -0.5, 0.0], np.float32),
        "a.running_var": np.ones(3, np.float32),
        "momentum/a.weight": np.zeros(3, np.float32),
        "average/a.weight": np.ones(3, np.float32),
    }
    nudged = runs.nudge(start)
    distance = nudged["a.weight"].view(np.int32) - start["a.weight"].view(np.int32)
    np.testing.assert_array_equal(distance, [1, -1, 1])
    assert all(nudged[name] is start[name] for name in start if name != "a.weight")


@pytest.mark.parametrize(("steps", "width"), [(1, 1), (201, 2), (8892, 45)])
def test_bins_hold_means_of_the_losses_and_the_largest_differences(steps, width):
    losses = np.arange(2.0 * steps).reshape(2, steps)
    comparison = Comparison(list(np.arange(float(steps))), unequal=list(range(steps)))
    series = figure.bin_series(losses, {"torch_jax": comparison})
    assert len(series["step"]) == -(-steps // width) <= figure.BINS
    assert series["torch"][0] == losses[0, :width].mean()
    assert (series["torch_jax"][0], series["torch_jax"][-1]) == (width - 1, steps - 1)
    assert (series["torch_jax_unequal"][0], series["torch_jax_unequal"][-1]) == (width - 1, steps - 1)


def test_the_pictures_are_drawn():
    """Also of steps without any difference, and of several precisions."""
    row = SMALL.__dict__ | {"steps": 3, "torch_jax_loss": 1e-16, "state_numbers": 10, "torch_jax_unequal": 2}
    series = {name: np.ones(3) for name in ("step", "torch", "jax")} | {"torch_jax_unequal": np.arange(3)}
    pictures = {figure.draw(row, series | {"torch_jax": np.full(3, value)}) for value in (0, 1e-16)}
    rows = [row | {"precision": precision} for precision in ("float32", "float64")]
    rows.append(row | {"precision": "bitwise", "torch_jax_unequal": 0})
    pictures.add(figure.draw_precisions(rows, [series | {"torch_jax": np.full(3, 1e-16)}] * 3))
    assert len(pictures) == 3 and all(picture.startswith(b"\x89PNG") for picture in pictures)
