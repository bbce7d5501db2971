"""Accuracy over seeds, the equivalence test, test-time augmentation, and both frameworks on real MNIST."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from benchmarks.accuracy.__main__ import AccuracyOptions, main
from benchmarks.accuracy.equivalence import MARGIN, compare_frameworks, compare_pairs, describe, pairs_needed
from benchmarks.accuracy.seeds import load_framework, train_seed
from benchmarks.accuracy.tta import SHIFTS, averaged_accuracy, shift_images, tta_accuracy
from scipy import stats

from benchmarks.accuracy import __main__ as accuracy
from recipe import data, record
from recipe.checkpoint import initial_tensors
from recipe.console import UserError
from recipe.data import Dataset, Loaded, Split
from recipe.networks import NETWORKS, get_network
from recipe.plan import Plan, make_plans, steps_per_epoch
from recipe.recipes import get_recipe
from recipe.run import Framework

# Scores of 15 patients before and after a treatment, and what R's equivalence::tost makes of them with a
# margin of 0.6: statsmodels, statsmodels/stats/tests/test_weightstats.py, tost_clinic_paired and ..._1.
CLINIC = {
    0.4412034046017588: (
        (0.1261653305099018, 0.999168002823431),
        [4.00, 3.26, 4.14, 3.42, 3.25, 4.34, 4.97, 4.31, 3.11, 3.41, 5.02, 4.21, 4.59, 5.30, 4.32],
        [3.76, 3.66, 3.65, 3.60, 3.48, 2.87, 3.24, 3.92, 3.99, 4.21, 4.21, 3.31, 3.61, 2.97, 2.73],
    ),
    0.003166881489265175: (
        (-0.0744336620516462, 0.4037669953849797),
        [2.84, 2.51, 2.41, 2.95, 3.14, 3.79, 4.14, 3.85, 3.02, 3.45, 5.37, 3.81, 4.19, 3.16, 3.84],
        [2.60, 2.82, 2.18, 3.46, 4.01, 3.04, 3.47, 4.06, 2.91, 3.59, 4.51, 3.16, 3.86, 3.31, 3.02],
    ),
}


class Trainer:
    """Its accuracy grows by 0.1 % each epoch; its logits are right for every image that was not shifted."""

    device_name = "cpu"
    threads = 1
    loss = 1.0

    def __init__(self, network, recipe, split: Split, device: str, precision: str):
        self.split, self.epochs = split, 0

    def load(self, tensors):
        assert tensors or self.epochs == 0

    def tensors(self):
        return {"conv1.weight": np.zeros(1)}

    def train(self, plan: Plan, advance: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        self.epochs += 1
        advance(plan.steps)
        return np.full(plan.steps, self.loss), np.zeros(plan.steps, int)

    def predict(self) -> np.ndarray:
        return np.eye(10)[self.split.val_labels]

    def evaluate(self) -> tuple[float, float]:
        return 0.1, 0.9 + 0.001 * self.epochs


class Diverging(Trainer):
    loss = float("nan")


FAKES = {name: Framework(name, ("numpy",), Trainer, lambda _: None) for name in ("torch", "jax")}
NET, RECIPE = get_network("net9954"), dataclasses.replace(get_recipe("net9954", "tuned"), epochs=3)


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """Both frameworks are fakes, MNIST is black, and the record is empty."""
    images, labels = np.zeros((640, 28, 28), np.uint8), np.zeros(640, np.uint8)
    blanks = Dataset("mnist", images, labels, images[:50], labels[:50])
    monkeypatch.setattr(
        data, "load", lambda choice, *_: Loaded(dataclasses.replace(blanks, name=choice), None)
    )
    monkeypatch.setattr(accuracy, "load_framework", FAKES.get)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path


def recorded(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("p", CLINIC)
def test_the_equivalence_test_gives_published_numbers(p):
    interval, before, after = CLINIC[p]
    result = compare_pairs(np.subtract(before, after), 0.6)
    assert result.p == pytest.approx(p)
    assert (result.low, result.high) == pytest.approx(interval)
    assert result.equivalent == (p < 0.05)


def test_both_one_sided_tests_are_students(rng):
    for _ in range(50):
        differences = rng.normal(rng.uniform(-0.1, 0.1), 0.05, rng.integers(2, 20))
        result = compare_pairs(differences, MARGIN)
        below = stats.ttest_1samp(differences, MARGIN, alternative="less").pvalue
        above = stats.ttest_1samp(differences, -MARGIN, alternative="greater").pvalue
        assert result.p == pytest.approx(max(below, above))
        assert result.equivalent == (result.low > -MARGIN and result.high < MARGIN)


def test_frameworks_that_differ_by_the_margin_pass_once_in_twenty(rng):
    passed = [compare_pairs(rng.normal(MARGIN, 0.04, 8), MARGIN).equivalent for _ in range(1000)]
    assert abs(np.mean(passed) - 0.05) < 0.03  # four standard errors


def test_pairs_needed_are_the_fewest_that_do():
    needed = pairs_needed(0.01, 0.06, MARGIN)
    assert needed
    for pairs, enough in ((needed - 1, False), (needed, True)):
        half_width = stats.t.ppf(0.95, pairs - 1) * 0.06 / np.sqrt(pairs)
        assert (0.01 + half_width < MARGIN) == enough
    assert pairs_needed(MARGIN, 0.01, MARGIN) is None


def test_frameworks_are_compared_over_the_seeds_that_both_have():
    finals = {"torch": (0.9951, 0.9952, 0.9953), "jax": (0.9950, 0.9951)}
    rows = [
        {"framework": name, "seed": n, "final": x} for name, xs in finals.items() for n, x in enumerate(xs)
    ]
    result = compare_frameworks(rows)
    assert result and result.pairs == 2 and result.mean == pytest.approx(0.01)
    assert describe(result).startswith("Equivalent within 0.05 points: PyTorch - Flax +0.010")
    assert compare_frameworks(rows[:3]) is None
    assert "at least two" in describe(None)


def test_an_image_is_judged_by_the_mean_over_its_shifts():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 5, 27] = 9
    assert shift_images(image, 1, -1)[0, 6, 26] == 9
    assert shift_images(image, 0, 1).sum() == 0, "what leaves the image is gone"
    assert (shift_images(image, 0, 0) == image).all()
    logits = np.zeros((len(SHIFTS), 2, 10))
    logits[:, 0, 3], logits[:4, 1, 7], logits[4:, 1, 8] = 1, 5, 5
    assert averaged_accuracy(logits.reshape(-1, 10), np.array([3, 7])) == 0.5


def test_the_trainer_predicts_every_shift(digits):
    assert tta_accuracy(FAKES["torch"], NET, RECIPE, digits, {}, "cpu") == 1.0


def test_a_seed_is_trained_to_its_last_epoch(digits):
    row = train_seed(FAKES["torch"], NET, RECIPE, digits, 7, "cpu")
    assert (row["framework"], row["seed"], row["best_epoch"], row["tta"]) == ("torch", 7, 3, 1.0)
    assert row["accuracies"] == pytest.approx([0.901, 0.902, 0.903]) and row["final"] == row["accuracies"][-1]


def test_a_seed_that_cannot_be_trained_is_an_error(digits):
    diverging = dataclasses.replace(FAKES["torch"], trainer=Diverging)
    with pytest.raises(UserError, match="seed 0 diverged in epoch 1"):
        train_seed(diverging, NET, RECIPE, digits, 0, "cpu")
    with pytest.raises(UserError, match="a batch of 9999 is more than the 1437 training images"):
        train_seed(FAKES["torch"], NET, dataclasses.replace(RECIPE, batch=9999), digits, 0, "cpu")


def test_the_command_measures_whatever_is_on_record(fakes, capsys):
    for _ in range(2):
        main(AccuracyOptions(dataset="digits", seeds=2, epochs=3))
    out = capsys.readouterr().out
    assert "on record" not in out and "conv1" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert "PyTorch 2 seeds: mean 90.300 +- 0.000, lowest 90.30" in out
    assert "Equivalent within 0.05 points" in out
    assert len(recorded(fakes / "runs" / "bench" / "seeds.jsonl")) == 8
    assert not list((fakes / "results").iterdir())


def test_publishing_adds_the_seeds_that_are_missing_and_says_so(fakes, capsys):
    main(AccuracyOptions(dataset="mnist", framework="torch", seeds=1, publish=True))
    capsys.readouterr()
    main(AccuracyOptions(dataset="mnist", framework="torch", seeds=2, publish=True))
    out = capsys.readouterr().out
    assert out.count("on record, not trained") == 1
    assert max(map(len, out.splitlines())) <= 80
    rows = recorded(fakes / "results" / "seeds.jsonl")
    assert [(row["seed"], row["recipe"], row["dataset"]) for row in rows] == [
        (0, "tuned", "mnist"),
        (1, "tuned", "mnist"),
    ]
    main(AccuracyOptions(dataset="mnist", framework="torch", seeds=2, publish=True))
    assert "nothing was trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AccuracyOptions(dataset="digits", publish=True), "--publish needs MNIST"),
        (AccuracyOptions(dataset="mnist", publish=True, epochs=1), "--publish needs the recipe's own"),
        (AccuracyOptions(seeds=0), "--seeds 0 is out of range"),
        (AccuracyOptions(network="net1"), "unknown network 'net1'"),
        (AccuracyOptions(recipe="mine"), "unknown recipe 'mine'"),
    ],
)
def test_faulty_options_are_refused(options, message, fakes):
    with pytest.raises(UserError, match=message):
        main(options)
    assert not list((fakes / "results").iterdir())


def test_the_help_waits_for_no_framework():
    code = "import sys, benchmarks.accuracy.__main__; print({'torch', 'jax'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"


def accuracy_after(name: str, network: str, split: Split) -> float:
    """Validation accuracy of `tuned` with a schedule of one epoch, seed 0."""
    recipe = dataclasses.replace(get_recipe(network, "tuned"), epochs=1)
    trainer = load_framework(name).trainer(get_network(network), recipe, split, "cpu", "float32")
    trainer.load(initial_tensors(get_network(network), recipe, 0, "float32"))
    images = len(split.train_images)
    for plan in make_plans(get_network(network), recipe, 0, images, 0, steps_per_epoch(recipe, images)):
        trainer.train(plan, lambda _: None)
    return trainer.evaluate()[1]


def test_both_frameworks_learn_mnist_alike(mnist):
    split = Split(*(array[:6400] for array in mnist[:2]), *(array[:2000] for array in mnist[2:]))
    ours, theirs = (accuracy_after(name, "net9954", split) for name in FAKES)
    assert min(ours, theirs) >= 0.9
    assert abs(ours - theirs) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_one_epoch_of_tuned_is_as_good_in_both(network, mnist):
    ours, theirs = (accuracy_after(name, network, mnist) for name in FAKES)
    assert min(ours, theirs) >= 0.97
    # One standard error of an accuracy of 98.5 % on 10,000 images is 0.12 points.
    assert abs(ours - theirs) <= 0.003
