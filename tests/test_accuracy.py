"""Accuracy over seeds, trials, the equivalence test, test-time augmentation, both frameworks on MNIST."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from benchmarks import accuracy, record
from benchmarks.accuracy import BASE, SHIFTS, AccuracyOptions, main
from benchmarks.equivalence import MARGIN, compare_frameworks, compare_pairs, pairs_needed
from recipe import data
from recipe.checkpoint import initial_tensors
from recipe.console import UserError
from recipe.data import Dataset
from recipe.networks import get_network
from recipe.plan import Plan, make_plans, steps_per_epoch
from recipe.recipes import get_recipe

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

    framework, packages, seen = "torch", ("numpy",), []

    def __init__(self, network, recipe, dataset: Dataset, devices, precision):
        self.dataset, self.epochs = dataset, 0
        self.seen.append((network.name, recipe, dataset))

    def load(self, tensors):
        pass

    def tensors(self):
        return {}

    def train(self, plan: Plan, advance):
        self.epochs += 1
        return np.ones(plan.steps), np.zeros(plan.steps, int)

    def predict(self):
        return np.eye(10)[self.dataset.val_labels]

    def evaluate(self):
        return 0.1, 0.9 + 0.001 * self.epochs

    @staticmethod
    def read_mnist(originals):
        raise OSError


class Device:
    name = "cpu"


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """Both frameworks are fakes, MNIST is black, and the record is empty."""
    trainers = {name: type(name, (Trainer,), {"framework": name}) for name in ("torch", "jax")}
    monkeypatch.setattr(accuracy, "load_framework", lambda name, _: (trainers[name], Device()))

    def load(choice, data_dir, reader, split):
        images, labels = np.zeros((700, 28, 28), np.uint8), np.zeros(700, np.uint8)
        return Dataset(choice, split, images[:640], labels[:640], images[640:], labels[640:])

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    Trainer.seen.clear()


@pytest.mark.parametrize("p", CLINIC)
def test_the_equivalence_test_gives_published_numbers(p):
    interval, before, after = CLINIC[p]
    result = compare_pairs(np.subtract(before, after), 0.6)
    assert result.p == pytest.approx(p)
    assert (result.low, result.high) == pytest.approx(interval)
    assert result.equivalent == (p < 0.05)


def test_pairs_needed_are_the_fewest_that_do():
    needed = pairs_needed(0.01, 0.06, MARGIN)
    assert needed
    half_widths = [stats.t.ppf(0.95, pairs - 1) * 0.06 / np.sqrt(pairs) for pairs in (needed - 1, needed)]
    assert half_widths[0] > MARGIN - 0.01 > half_widths[1]
    assert pairs_needed(MARGIN, 0.01, MARGIN) is None


def test_frameworks_are_compared_over_the_seeds_that_both_have():
    finals = {"torch": (0.9951, 0.9952, 0.9953), "jax": (0.9950, 0.9951)}
    rows = [{"framework": name, "seed": n, "final": x} for name in finals for n, x in enumerate(finals[name])]
    result = compare_frameworks(rows)
    assert result and result.pairs == 2 and result.mean == pytest.approx(0.01)
    assert compare_frameworks(rows[:4]) is None


def test_images_are_shifted_by_a_pixel_in_each_direction(digits):
    shifted = accuracy.shift_validation(digits).val_images.reshape(len(SHIFTS), -1, 28, 28)
    by_shift = dict(zip(SHIFTS, shifted, strict=True))
    np.testing.assert_array_equal(by_shift[1, 1], digits.val_images)
    np.testing.assert_array_equal(by_shift[2, 0][:, 1:, :-1], digits.val_images[:, :-1, 1:])
    assert not by_shift[2, 0][:, 0].any() and not by_shift[2, 0][:, :, -1].any()


def test_seeds_are_trained_to_the_last_epoch_and_recorded(fakes):
    for _ in range(2):  # what is not published is trained again
        main(AccuracyOptions(dataset="digits", seeds=2, epochs=3))
    rows = record.read_rows("seeds", record.BENCH)
    jobs = [("torch", 0), ("jax", 0), ("torch", 1), ("jax", 1)]
    assert [(row["framework"], row["seed"]) for row in rows] == 2 * jobs
    for row in rows:
        assert row["accuracies"] == pytest.approx([0.901, 0.902, 0.903])
        assert (row["final"], row["best_epoch"], row["tta"]) == (row["accuracies"][-1], 3, 1.0)
    for seeds in (1, 2, 2):  # published, only those that are missing
        main(AccuracyOptions(dataset="mnist", framework="torch", seeds=seeds, publish=True))
    assert [row["seed"] for row in record.read_rows("seeds")] == [0, 1]


def test_trials_change_the_base_recipe(fakes):
    changes = ("batch=32", "rotation=12", "ema_decay=None", "nesterov=False")
    trial = AccuracyOptions(dataset="mnist", split="holdout", framework="torch", changes=changes, epochs=2)
    for seeds in (1, 2):
        main(dataclasses.replace(trial, seeds=seeds, publish=True))
    name, recipe, dataset = Trainer.seen[0]
    assert (name, dataset.fingerprint) == ("net10040", "holdout")
    expected = {"batch": 32, "rotation": 12.0, "ema_decay": None, "nesterov": False, "epochs": 2}
    assert recipe == dataclasses.replace(BASE, **expected)
    rows = record.read_rows("tuning", split="holdout")
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["changes"] == "epochs=2 batch=32 nesterov=False rotation=12.0 ema_decay=None"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "digits", "publish": True}, "--publish needs MNIST"),
        ({"dataset": "mnist", "publish": True, "epochs": 1}, "--publish needs the recipe's own"),
        ({"seeds": 0}, "--seeds 0"),
        ({"network": "net1"}, "net1"),
        ({"recipe": "mine"}, "mine"),
        ({"changes": ("batch=32",)}, "--split holdout"),
        ({"split": "holdout", "recipe": "reference"}, "--changes"),
        *[({"split": "holdout", "changes": (change,)}, change) for change in ("batch", "batch=", "speed=3")],
    ],
)
def test_faulty_options_are_refused(options, message, fakes):
    with pytest.raises(UserError, match=message):
        main(AccuracyOptions(**options))
    assert not record.RESULTS.exists()


def accuracy_after(name: str, network: str, dataset: Dataset) -> float:
    """Validation accuracy of `tuned` with a schedule of one epoch, seed 0."""
    recipe = dataclasses.replace(get_recipe(network, "tuned"), epochs=1)
    trainer_type, devices = accuracy.load_framework(name, "cpu")
    trainer = trainer_type(get_network(network), recipe, dataset, devices, "float32")
    trainer.load(initial_tensors(get_network(network), recipe, 0, "float32"))
    images = len(dataset.train_images)
    for plan in make_plans(get_network(network), recipe, 0, images, 0, steps_per_epoch(recipe, images)):
        trainer.train(plan, lambda _: None)
    return trainer.evaluate()[1]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["net9954", "net9808"])
def test_one_epoch_of_tuned_is_as_good_in_both(network, mnist):
    """Within four standard deviations of the difference of two runs that share nothing but the seed.

    Rounding in float32 soon makes them so. After this epoch five seeds of net9808 had 99.03 % and a standard
    deviation of 0.11 points in PyTorch, 99.00 % and 0.13 in Flax: of a difference, 0.17 points.
    """
    ours, theirs = (accuracy_after(name, network, mnist) for name in ("torch", "jax"))
    assert min(ours, theirs) >= 0.98
    assert abs(ours - theirs) <= 4 * 0.0017
