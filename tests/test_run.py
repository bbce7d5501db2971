"""What is true of every run, by a framework that computes next to nothing: files, endings, mistakes."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from recipe import run
from recipe.checkpoint import FILE_NAME, load_checkpoint, write_atomically
from recipe.console import UserError
from recipe.recipes import get_recipe, learning_rates
from recipe.run import FILES, TrainOptions, check_cores, last_step, prepare
from tests import fake
from tests.fake import PER_EPOCH, train


@pytest.fixture(autouse=True)
def skip_slow_parts(monkeypatch):
    fake.skip_slow_parts(monkeypatch.setattr)


def test_a_run_leaves_what_it_promises(tmp_path, capsys):
    path = train(tmp_path / "run", epochs=2)
    folder = path.parent
    assert {entry.name for entry in folder.iterdir()} == set(FILES)

    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = ["epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]
    keys.append("digest")
    assert [list(entry) for entry in metrics] == [keys, keys]
    assert [(entry["epoch"], entry["step"]) for entry in metrics] == [(1, PER_EPOCH), (2, 2 * PER_EPOCH)]
    assert [entry["train_accuracy"] for entry in metrics] == [3 / 128, 3 / 128], "as the trainer counts"
    lr = learning_rates(dataclasses.replace(get_recipe("net9954", "tuned"), epochs=2), 2 * PER_EPOCH)
    assert [entry["lr"] for entry in metrics] == [lr[PER_EPOCH - 1], lr[-1]]

    losses = np.load(folder / "losses.npy", allow_pickle=False)
    assert (losses.dtype, losses.shape) == (np.float64, (2 * PER_EPOCH,))
    assert metrics[1]["train_loss"] == pytest.approx(losses[PER_EPOCH:].mean())

    config = json.loads((folder / "config.json").read_text())
    assert (config["framework"], config["device"], config["recipe"]["epochs"]) == ("fake", "cpu", 2)
    assert config["data"]["name"] == "digits"
    assert config["versions"].keys() == {"python", "numpy"}
    assert config["machine"]["cores"] > 0 and config["threads"] == 1

    checkpoint = load_checkpoint(path)
    assert checkpoint.step == 2 * PER_EPOCH
    assert [dataclasses.asdict(entry) for entry in checkpoint.metrics] == metrics
    assert dataclasses.asdict(checkpoint.config) == config
    np.testing.assert_array_equal(checkpoint.losses, losses)

    printed = capsys.readouterr().out
    assert "2 epochs of 11 steps of 128 images" in printed
    assert re.search(r"^  2/2  .*\n.*final validation accuracy 50.00 % \(epoch 2, digits\)$", printed, re.M)
    assert "parameters 9,954" in printed


def test_another_seed_is_another_run(tmp_path):
    once, again, other = (load_checkpoint(train(tmp_path / str(n), seed=n // 2)) for n in range(3))
    np.testing.assert_array_equal(once.losses, again.losses)
    assert not np.isclose(once.losses, other.losses).any()


def test_without_out_a_run_goes_where_its_settings_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(None, max_steps=2, seed=5)
    assert (tmp_path / "runs" / "fake-net9954-tuned-5-digits" / FILE_NAME).exists()


def test_without_precision_a_run_on_the_digits_is_bitwise(tmp_path):
    assert load_checkpoint(train(tmp_path / "run", max_steps=1, precision=None)).config.precision == "bitwise"


def test_a_folder_for_the_digits_is_refused(tmp_path):
    with pytest.raises(UserError, match="leave out --data-dir"):
        train(tmp_path / "run", data_dir=tmp_path)
    first = train(tmp_path / "first", max_steps=1)
    with pytest.raises(UserError, match=r"first.* was trained on the digits, .*leave out --data-dir"):
        train(tmp_path / "again", resume=first, data_dir=tmp_path)


def test_more_devices_than_cores_are_refused_unless_asked_for():
    with pytest.raises(UserError, match=r"--devices 1000 on .* core.*give fewer, or --device cpu"):
        check_cores(1000, "auto")
    check_cores(1000, "cpu")
    check_cores(1, "auto")


def test_a_config_says_what_it_was_resumed_from(tmp_path):
    first = train(tmp_path / "first", max_steps=2)
    again = train(tmp_path / "again", max_steps=3, resume=first)
    configs = [json.loads((path.parent / "config.json").read_text()) for path in (first, again)]
    assert [config["resumed_from"] for config in configs] == [None, str(first)]


def test_holdout_trains_on_fewer_images(tmp_path):
    path = train(tmp_path / "run", split="holdout", epochs=1)
    assert load_checkpoint(path).step == (1437 - 300) // 128


def test_auto_falls_back_to_the_digits_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MNIST_DIR", raising=False)
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "cache"))
    path = train(tmp_path / "run", dataset="auto", max_steps=2)
    note = "MNIST is not cached and cannot be downloaded (there is none), so this trains on scikit-learn's"
    assert capsys.readouterr().out.count(note) == 1
    config = load_checkpoint(path).config
    assert (config.data.name, note in (config.data_note or "")) == ("digits", True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "net1"}, "unknown network 'net1'; choose one of: net10040, net9954"),
        ({"recipe": "best"}, "unknown recipe 'best'; choose one of: tuned, reference"),
        ({"epochs": 0}, "--epochs 0 is out of range; give 1 to 1000"),
        ({"epochs": 1001}, "--epochs 1001 is out of range"),
        ({"batch": 0}, "--batch 0 is out of range; give 1 to 10000"),
        ({"batch": 9999}, "--batch 9999 is more than the 1437 training images"),
        ({"batch": 1, "network": "8 pool average 16x1 10x1"}, "--batch 1 gives a batch norm one number"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, "--seed 9223372036854775808 is out of range"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"resume": Path("nowhere")}, "there is no checkpoint nowhere"),
        ({"dataset": "mnist", "data_dir": Path("nowhere")}, "nowhere"),
    ],
)
def test_bad_options_are_named(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_a_folder_with_a_run_is_left_alone(tmp_path):
    path = train(tmp_path / "run", epochs=1)
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    for changes in ({}, {"resume": train(tmp_path / "other", max_steps=3)}):
        with pytest.raises(
            UserError, match=r"already holds a run; choose another --out, or go on with --resume"
        ):
            train(tmp_path / "run", **changes)
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before


class Ending(fake.Trainer):
    """Its loss is not finite after some epochs, or it is interrupted then."""

    epochs, interrupted = 0, False

    def train(self, plan, advance):
        losses, correct = super().train(plan, advance)
        self.epochs -= 1
        if self.epochs < 0:
            if self.interrupted:
                raise KeyboardInterrupt
            losses[2] = np.nan
        return losses, correct


LOST = r"the loss is nan at step {}, learning rate .*; kept: {}; use"


@pytest.mark.parametrize(
    ("epochs", "words"),
    [
        (0, LOST.format(2, "nothing, in the first epoch")),
        (1, LOST.format(13, r".* at step 11; go on with --resume .*")),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(epochs, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", type("Exploding", (Ending,), {"epochs": epochs}))
    path = tmp_path / "run" / FILE_NAME
    assert load_checkpoint(path).step == PER_EPOCH if epochs else not path.exists()


@pytest.mark.parametrize(("epochs", "kept"), [(0, "kept: nothing, in the first epoch"), (2, "at step 22")])
def test_an_interruption_keeps_the_last_epoch(epochs, kept, tmp_path):
    with pytest.raises(KeyboardInterrupt) as end:
        train(tmp_path / "run", type("Interrupted", (Ending,), {"epochs": epochs, "interrupted": True}))
    assert kept in end.value.__notes__[0]
    assert (tmp_path / "run" / "curves.png").exists() == (epochs > 0)
    resume = tmp_path / "run" if epochs else None
    assert load_checkpoint(train(tmp_path / "run", resume=resume)).step == 3 * PER_EPOCH


def test_a_run_that_resumed_another_names_that_one_until_it_has_its_own(tmp_path):
    first = train(tmp_path / "first", max_steps=PER_EPOCH)
    with pytest.raises(UserError, match=re.escape(f"kept: {first} at step 11; go on with --resume")):
        train(tmp_path / "second", Ending, resume=first)


def test_an_interruption_between_two_files_leaves_them_of_one_epoch(tmp_path, monkeypatch):
    interruptions = [KeyboardInterrupt]

    def interrupting(path, content):
        if path.name == "losses.npy" and len(content) > 128 + 8 * PER_EPOCH and interruptions:
            raise interruptions.pop()
        write_atomically(path, content)

    monkeypatch.setattr(run, "write_atomically", interrupting)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run")
    assert len(np.load(tmp_path / "run" / "losses.npy")) == 2 * PER_EPOCH
    assert load_checkpoint(tmp_path / "run" / FILE_NAME).step == 2 * PER_EPOCH


@pytest.mark.parametrize(("given", "last"), [(None, 3 * PER_EPOCH), (5, 5), (10**6, 3 * PER_EPOCH)])
def test_the_last_step_is_the_schedule_s_or_the_given_one(given, last):
    config, *_ = prepare(TrainOptions(**fake.OPTIONS | {"max_steps": given}), fake.Trainer)
    assert last_step(config, 1437) == last


def test_the_curves_show_every_step_and_the_goal_of_mnist(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(run.data, "load_digits", fake.load_blanks)
    content = (train(tmp_path / "run", max_steps=2).parent / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")
