"""Many seeds and the equivalence test."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats

from benchmarks import seeds
from benchmarks.equivalence import compare_pairs, describe_equivalence, pairs_needed
from benchmarks.seeds import SeedsOptions, main
from benchmarks.shifts import averaged_accuracy, shift_images, shifted_accuracy
from recipe.checkpoint import load_checkpoint
from recipe.errors import UserError
from recipe.networks import get_network
from recipe.recipes import get_recipe

MARGIN = 0.05


# ------------------------------------------------------------------------------------------ equivalence


def test_both_one_sided_tests_are_students(rng):
    differences = rng.normal(0.02, 0.03, 12)
    found = compare_pairs(differences, MARGIN)
    below = stats.ttest_1samp(differences, MARGIN, alternative="less").pvalue
    above = stats.ttest_1samp(differences, -MARGIN, alternative="greater").pvalue
    assert found["p"] == pytest.approx(max(below, above))
    assert found["interval"] == pytest.approx(stats.ttest_1samp(differences, 0).confidence_interval(0.9))


def test_the_interval_and_the_tests_agree(rng):
    for _ in range(200):
        found = compare_pairs(rng.normal(rng.uniform(-0.1, 0.1), 0.05, rng.integers(2, 20)), MARGIN)
        inside = found["interval"][0] > -MARGIN and found["interval"][1] < MARGIN
        assert inside == found["equivalent"]


def test_two_frameworks_that_differ_by_the_margin_pass_once_in_twenty(rng):
    passed = [compare_pairs(rng.normal(MARGIN, 0.04, 8), MARGIN)["equivalent"] for _ in range(2000)]
    assert abs(np.mean(passed) - 0.05) < 0.02  # four standard errors


def test_equal_runs_are_equivalent():
    assert compare_pairs(np.zeros(3), MARGIN)["equivalent"]
    assert not compare_pairs(np.full(3, 0.06), MARGIN)["equivalent"]


@pytest.mark.parametrize("pairs", [0, 1])
def test_less_than_two_pairs_say_nothing(pairs):
    found = compare_pairs(np.zeros(pairs), MARGIN)
    assert not found["equivalent"]
    assert "at least two" in describe_equivalence(found)


def test_pairs_needed_are_the_fewest_that_do():
    needed = pairs_needed(0.01, 0.06, MARGIN)
    for pairs, expected in ((needed - 1, False), (needed, True)):
        half = np.full(pairs, 0.06) * (-1) ** np.arange(pairs)
        spread = (half - half.mean()) / half.std(ddof=1) * 0.06 + 0.01
        assert compare_pairs(spread, MARGIN)["equivalent"] is expected
    assert pairs_needed(0.05, 0.01, MARGIN) is None


def test_the_report_says_how_many_more_pairs_it_takes():
    differences = np.array([0.05, -0.05, 0.06, -0.04])
    found = compare_pairs(differences, MARGIN)
    assert f"{found['pairs_needed'] - 4} more" in describe_equivalence(found)
    assert "no number of pairs" in describe_equivalence(compare_pairs(differences + 0.1, MARGIN))
    assert describe_equivalence(compare_pairs(differences / 100, MARGIN)).startswith("Equivalent")


# ----------------------------------------------------------------------------------------------- shifts


def test_shifts_move_an_image_by_a_pixel():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 5, 7] = 9
    for down, right in ((-1, 0), (1, 1), (0, -1), (0, 0)):
        moved = shift_images(image, down, right)
        assert moved.shape == image.shape
        assert np.argwhere(moved[0]).tolist() == [[5 + down, 7 + right]]
    image[0, 0, 0] = 3
    assert shift_images(image, -1, -1).sum() == 9, "what leaves the image is gone, nothing wraps around"


# ------------------------------------------------------------------------------------------------ seeds


def options(folder, **changes) -> SeedsOptions:
    given = {"network": "net9954", "recipe": "reference", "epochs": 2, "dataset": "digits", "device": "cpu"}
    return SeedsOptions(**given | {"runs": folder / "runs", "out": folder / "seeds.json"} | changes)


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    main(options(folder, seeds=2))
    return folder


def test_the_result_has_every_seed_of_both_frameworks(two_seeds):
    result = json.loads((two_seeds / "seeds.json").read_text())
    assert {kind: list(result[kind]) for kind in ("torch", "jax")} == {"torch": ["0", "1"], "jax": ["0", "1"]}
    for kind in ("torch", "jax"):
        finals = []
        for seed in ("0", "1"):
            found = result[kind][seed]
            checkpoint = load_checkpoint(
                two_seeds / "runs" / f"{kind}-net9954-reference-{seed}" / "checkpoint.safetensors"
            )
            accuracies = [entry["val_accuracy"] for entry in checkpoint.metrics]
            assert found["accuracies"] == accuracies
            assert (found["final"], found["best"]) == (accuracies[-1], max(accuracies))
            assert accuracies[found["best_epoch"] - 1] == max(accuracies)
            assert abs(found["shifted"] - found["final"]) < 0.3
            finals.append(100 * found["final"])
        summary = result["summary"][kind]
        assert (summary["mean"], summary["minimum"]) == (pytest.approx(np.mean(finals)), min(finals))
        assert summary["deviation"] == pytest.approx(np.std(finals, ddof=1))
    pairs = [100 * (result["torch"][seed]["final"] - result["jax"][seed]["final"]) for seed in ("0", "1")]
    assert result["equivalence"]["mean"] == pytest.approx(np.mean(pairs))
    assert result["versions"].keys() >= {"torch", "jax"}
    assert (two_seeds / "seeds.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_on_record_are_not_trained_again(two_seeds, monkeypatch, capsys):
    def train(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(seeds, "train", train)
    main(options(two_seeds, seeds=2))
    assert "mean" in capsys.readouterr().out


def test_a_seed_that_was_stopped_goes_on(two_seeds, tmp_path, monkeypatch):
    whole = json.loads((two_seeds / "seeds.json").read_text())["torch"]["0"]

    def stopping(training, framework):
        seeds_train(type(training)(**vars(training) | {"max_steps": 11}), framework)
        raise KeyboardInterrupt

    seeds_train = seeds.train
    monkeypatch.setattr(seeds, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(options(tmp_path, seeds=1, framework="torch"))
    monkeypatch.undo()
    main(options(tmp_path, seeds=1, framework="torch"))
    found = json.loads((tmp_path / "seeds.json").read_text())["torch"]["0"]
    assert found["accuracies"] == whole["accuracies"]


def test_a_gpu_trains_the_seeds_that_are_missing_at_once(two_seeds, tmp_path, monkeypatch):
    asked = []

    def together(*arguments):
        asked.append(arguments[-2])
        return train_together(*arguments)

    train_together = seeds.train_together
    monkeypatch.setattr(seeds, "on_gpu", lambda device: True)
    monkeypatch.setattr(seeds, "train_together", together)
    shutil.copy(two_seeds / "seeds.json", tmp_path)
    main(options(tmp_path, seeds=4, framework="torch"))
    found = json.loads((tmp_path / "seeds.json").read_text())["torch"]
    assert (asked, list(found)) == ([[2, 3]], ["0", "1", "2", "3"])
    assert found["0"].keys() <= found["3"].keys()
    assert len(found["3"]["accuracies"]) == 2
    assert not (tmp_path / "runs").exists()


def test_another_recipe_does_not_mix_with_what_is_on_record(two_seeds):
    with pytest.raises(UserError, match="another recipe"):
        main(options(two_seeds, epochs=3))
    with pytest.raises(UserError, match="another recipe"):
        main(options(two_seeds, recipe="tuned"))


def test_what_is_no_result_is_left_alone(tmp_path):
    (tmp_path / "seeds.json").write_text("[]")
    with pytest.raises(UserError, match="no result of"):
        main(options(tmp_path))
    assert (tmp_path / "seeds.json").read_text() == "[]"


@pytest.mark.parametrize(
    "changes", [{"network": "net1"}, {"framework": "keras"}, {"seeds": 0}, {"epochs": 0}, {"device": "tpu"}]
)
def test_bad_options_are_named(changes, tmp_path):
    with pytest.raises(UserError, match=f"--{next(iter(changes))}"):
        main(options(tmp_path, **changes))


def test_without_shifts_the_accuracy_is_that_of_the_run(two_seeds, digits, monkeypatch):
    path = two_seeds / "runs" / "torch-net9954-reference-0" / "checkpoint.safetensors"
    network, recipe = get_network("net9954"), get_recipe("net9954", "reference")
    state = load_checkpoint(path)
    monkeypatch.setattr("benchmarks.shifts.SHIFTS", ((0, 0),))
    alone = shifted_accuracy(seeds.FRAMEWORKS["torch"], network, recipe, digits, state.tensors, "float32")
    assert alone == state.metrics[-1]["val_accuracy"]


def test_the_mean_probability_over_the_shifts_decides():
    labels = np.array([3, 7])
    logits = np.zeros((9, 2, 10))
    logits[0, [0, 1], labels] = 9  # one shift knows every class well, the others lean to a wrong one
    logits[1:, [0, 1], labels - 1] = 0.01
    assert averaged_accuracy(logits.reshape(18, 10), labels) == 1
    assert averaged_accuracy(np.roll(logits, 1, axis=2).reshape(18, 10), labels) == 0
