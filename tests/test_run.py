"""Whole runs on the bundled digits, in both frameworks: files, resuming, interruptions, bad input."""

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jax_impl.train
import torch_impl.train
from recipe.checkpoint import load_checkpoint, save_checkpoint
from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.options import TrainOptions, run_command
from recipe.plan import make_plan
from recipe.recipes import get_recipe, learning_rates
from recipe.run import Framework, train

FRAMEWORKS = {"torch": torch_impl.train.FRAMEWORK, "jax": jax_impl.train.FRAMEWORK}
ROOT = Path(__file__).parent.parent
PER_EPOCH = 11  # 1,437 digits in batches of 128
BASE = TrainOptions(network="net9954", dataset="digits", epochs=4, batch=128, device="cpu")


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Framework:
    return FRAMEWORKS[request.param]


def run(framework: Framework, out: Path, **changes) -> Path:
    train(dataclasses.replace(BASE, out=out, **changes), framework)
    return out / "checkpoint.safetensors"


def test_a_run_leaves_what_it_promises(framework, tmp_path, capsys):
    path = run(framework, tmp_path / "run", epochs=2)
    folder = path.parent
    names = {entry.name for entry in folder.iterdir()} - {".lock"}
    assert names == {"config.json", "metrics.jsonl", "losses.npy", "checkpoint.safetensors", "curves.png"}

    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = ["epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]
    assert [list(entry) for entry in metrics] == [keys, keys]
    assert [(entry["epoch"], entry["step"]) for entry in metrics] == [(1, PER_EPOCH), (2, 2 * PER_EPOCH)]
    assert all(0 <= entry[key] <= 1 for entry in metrics for key in ("train_accuracy", "val_accuracy"))
    rates = learning_rates(dataclasses.replace(get_recipe("net9954", "tuned"), epochs=2), 2 * PER_EPOCH)
    assert [entry["lr"] for entry in metrics] == [rates[PER_EPOCH - 1], rates[-1]]

    losses = np.load(folder / "losses.npy", allow_pickle=False)
    assert (losses.dtype, losses.shape) == (np.float64, (2 * PER_EPOCH,))
    assert metrics[1]["train_loss"] == pytest.approx(losses[PER_EPOCH:].mean())
    assert losses[-4:].mean() < losses[:4].mean() - 0.3, "it learns"

    config = json.loads((folder / "config.json").read_text())
    assert config["framework"] == framework.name
    assert config["recipe"]["epochs"] == 2
    assert config["data"]["name"] == "digits"
    assert config["versions"].keys() >= {"numpy"}

    checkpoint = load_checkpoint(path)
    assert checkpoint.step == 2 * PER_EPOCH
    np.testing.assert_array_equal(checkpoint.losses, losses)
    assert checkpoint.metrics == metrics

    printed = capsys.readouterr().out
    for expected in (
        "9,954",
        "epoch   2/2",
        "final validation accuracy",
        "digits",
        "no fully connected layer",
    ):
        assert expected in printed


def test_resuming_is_bit_identical_to_never_having_stopped(framework, tmp_path):
    whole = load_checkpoint(run(framework, tmp_path / "whole"))
    first = run(framework, tmp_path / "parts", max_steps=2 * PER_EPOCH)
    np.testing.assert_array_equal(load_checkpoint(first).losses, whole.losses[: 2 * PER_EPOCH])
    inside = run(framework, tmp_path / "elsewhere", resume=first, max_steps=3 * PER_EPOCH - 4)  # mid-epoch
    last = load_checkpoint(run(framework, tmp_path / "elsewhere", resume=inside))
    np.testing.assert_array_equal(last.losses, whole.losses)
    assert last.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(last.tensors[name], tensor, err_msg=name)
    assert [entry["step"] for entry in last.metrics] == [11, 22, 29, 33, 44]
    assert last.metrics[-1]["val_loss"] == whole.metrics[-1]["val_loss"]


@pytest.mark.parametrize("order", [("torch", "jax"), ("jax", "torch")])
def test_a_run_goes_on_in_the_other_framework(order, tmp_path):
    """Three epochs in each against six in either, in float64: losses within 1e-9, tensors within 1e-7.

    Rounding differences of the smallest momenta are 1e-9 of them after these 66 steps; a momentum that was
    lost on the way would be 1e-3.
    """
    first, second = (FRAMEWORKS[name] for name in order)
    options = {"precision": "float64", "epochs": 6}
    half = run(first, tmp_path / "half", max_steps=3 * PER_EPOCH, **options)
    mixed = load_checkpoint(run(second, tmp_path / "mixed", resume=half, **options))
    for framework in FRAMEWORKS.values():
        whole = load_checkpoint(run(framework, tmp_path / framework.name, **options))
        np.testing.assert_allclose(mixed.losses, whole.losses, rtol=0, atol=1e-9)
        for name, tensor in whole.tensors.items():
            difference = np.linalg.norm((mixed.tensors[name] - tensor).ravel())
            assert difference <= 1e-7 * np.linalg.norm(tensor.ravel()), name
        assert mixed.metrics[-1]["val_accuracy"] == whole.metrics[-1]["val_accuracy"]


def test_the_same_seed_gives_the_same_bits(framework, tmp_path):
    options = {"epochs": 1, "network": "net10040"}
    once, again = (load_checkpoint(run(framework, tmp_path / name, **options)) for name in "ab")
    for name, tensor in once.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    other = load_checkpoint(run(framework, tmp_path / "c", seed=1, **options))
    assert not np.array_equal(other.losses, once.losses)


def test_without_out_a_run_goes_where_its_settings_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(dataclasses.replace(BASE, max_steps=2, seed=5), FRAMEWORKS["torch"])
    assert (tmp_path / "runs" / "torch-net9954-tuned-5" / "checkpoint.safetensors").exists()


def test_a_config_says_what_it_was_resumed_from_and_by_which_code(tmp_path):
    first = run(FRAMEWORKS["torch"], tmp_path / "first", max_steps=2)
    again = run(FRAMEWORKS["torch"], tmp_path / "again", max_steps=3, resume=first)
    configs = [json.loads((path.parent / "config.json").read_text()) for path in (first, again)]
    assert [config["resumed_from"] for config in configs] == [None, str(first)]
    for config in configs:
        assert config["commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", config["commit"])
    if shutil.which("git"):  # what it prints where there is no repository is nothing
        here = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
        assert (configs[0]["commit"] or "").startswith(here.strip())


def test_holdout_trains_on_fewer_images(tmp_path):
    path = run(FRAMEWORKS["torch"], tmp_path / "run", split="holdout", epochs=1)
    assert load_checkpoint(path).step == (1437 - 300) // 128


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "net1"}, "--network 'net1'.*net10040, net9954"),
        ({"recipe": "best"}, "--recipe 'best'.*tuned, reference"),
        ({"dataset": "cifar"}, "^--dataset 'cifar'"),
        ({"split": "train"}, "--split"),
        ({"precision": "float16"}, "--precision"),
        ({"device": "tpu"}, "--device"),
        ({"device": "cuda"}, "--device cuda.*--device cpu"),
        ({"epochs": 0}, "--epochs 0 is out of range; give 1 to 1000"),
        ({"epochs": 10**6}, "--epochs"),
        ({"batch": 0}, "--batch 0"),
        ({"batch": 9999}, "--batch 9999 is more than the 1437 training images"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, "--seed 9223372036854775808 is out of range"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"resume": Path("nowhere")}, "there is no checkpoint nowhere"),
        ({"dataset": "mnist", "data_dir": Path("nowhere")}, "nowhere"),
    ],
)
def test_bad_options_are_named(framework, tmp_path, changes, words):
    if changes == {"device": "cuda"}:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match=words):
        run(framework, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_a_folder_with_a_run_is_left_alone(framework, tmp_path):
    path = run(framework, tmp_path / "run", epochs=1)
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    for changes in ({}, {"resume": run(framework, tmp_path / "other", max_steps=3)}):
        with pytest.raises(UserError, match="already holds a run; choose another --out"):
            run(framework, tmp_path / "run", **changes)
    with pytest.raises(UserError, match="is at step 11 already"):
        run(framework, tmp_path / "run", epochs=1, resume=path)
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "net10040"}, "network net9954, this one has net10040"),
        ({"recipe": "reference"}, "recipe.name tuned, this one has reference"),
        ({"epochs": 5}, "recipe.epochs 4, this one has 5"),
        ({"seed": 1}, "seed 0, this one has 1"),
        ({"precision": "float64"}, "precision float32, this one has float64"),
        ({"split": "holdout"}, "split test, this one has holdout"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changes, words, tmp_path, checkpoint_of_three_steps):
    with pytest.raises(UserError, match=words):
        run(FRAMEWORKS["jax"], tmp_path / "run", resume=checkpoint_of_three_steps, **changes)


def test_a_long_value_in_a_checkpoint_is_cut_in_the_message(tmp_path, checkpoint_of_three_steps):
    checkpoint = load_checkpoint(checkpoint_of_three_steps)
    for length, shown in ((100, 100 * "x"), (101, "'xxxxxxxxxxxx...xxxxxxxxxxxxx'")):
        config = checkpoint.config | {"precision": length * "x"}
        save_checkpoint(tmp_path / "c.safetensors", dataclasses.replace(checkpoint, config=config))
        words = f"a run with precision {shown}, this one has float32; give the same"
        with pytest.raises(UserError, match=re.escape(words)):
            run(FRAMEWORKS["torch"], tmp_path / "run", resume=tmp_path / "c.safetensors")


def test_a_checkpoint_without_the_metrics_of_its_epochs_is_refused(tmp_path, checkpoint_of_three_steps):
    checkpoint = load_checkpoint(checkpoint_of_three_steps)
    assert checkpoint.metrics[0].pop("val_loss") > 0
    save_checkpoint(tmp_path / "c.safetensors", checkpoint)
    with pytest.raises(
        UserError, match=r"c\.safetensors lacks the metrics of its epochs; use another checkpoint"
    ):
        run(FRAMEWORKS["torch"], tmp_path / "run", resume=tmp_path / "c.safetensors")


@pytest.fixture(scope="module")
def checkpoint_of_three_steps(tmp_path_factory) -> Path:
    return run(FRAMEWORKS["torch"], tmp_path_factory.mktemp("three") / "run", max_steps=3)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    refusals = []

    def second_run(*arguments):
        with pytest.raises(UserError, match="another run is at work in"):
            run(FRAMEWORKS["torch"], tmp_path / "run")
        refusals.append(True)
        return make_plan(*arguments)

    monkeypatch.setattr("recipe.run.make_plan", second_run)
    run(FRAMEWORKS["jax"], tmp_path / "run", max_steps=2)
    assert refusals == [True]


def test_unwritable_folders_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot use .*file/run as run folder"):
        run(FRAMEWORKS["torch"], tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite_stops_the_run(framework, tmp_path, monkeypatch):
    def exploding(*arguments):
        plan = make_plan(*arguments)
        rates = plan.rates.copy()
        if arguments[4] >= PER_EPOCH:  # from the second epoch on
            rates[2] = 1e38
        return dataclasses.replace(plan, rates=rates)

    monkeypatch.setattr("recipe.run.make_plan", exploding)
    words = rf"the loss is nan at step \d+, learning rate .*last good checkpoint is .*\(step {PER_EPOCH}\)"
    with pytest.raises(UserError, match=words):
        run(framework, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").step == PER_EPOCH


def test_an_interruption_keeps_the_last_epoch(framework, tmp_path, monkeypatch, capsys):
    def interrupting(*arguments):
        if arguments[4] >= 2 * PER_EPOCH:
            monkeypatch.setattr(framework.trainer, "train", interrupted)
        return make_plan(*arguments)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("recipe.run.make_plan", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(framework, tmp_path / "run")
    assert "at step 22" in capsys.readouterr().out
    assert (tmp_path / "run" / "curves.png").exists()
    monkeypatch.undo()
    path = tmp_path / "run" / "checkpoint.safetensors"
    assert load_checkpoint(run(framework, tmp_path / "run", resume=path)).step == 4 * PER_EPOCH


def test_an_interruption_between_two_files_leaves_them_of_one_epoch(tmp_path, monkeypatch, capsys):
    write, interruptions = write_atomically, [KeyboardInterrupt]

    def interrupting(path, content):
        if path.name == "losses.npy" and len(content) > 128 + 8 * PER_EPOCH and interruptions:
            raise interruptions.pop()
        write(path, content)

    monkeypatch.setattr("recipe.folder.write_atomically", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(FRAMEWORKS["torch"], tmp_path / "run")
    assert "at step 22" in capsys.readouterr().out
    assert len(np.load(tmp_path / "run" / "losses.npy")) == 2 * PER_EPOCH
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").step == 2 * PER_EPOCH


# ------------------------------------------------------------------------------------- as a person calls them


def command(framework: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"{framework}_impl.train", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_help_is_short_and_mistakes_are_one_line(framework, tmp_path):
    helped = command(framework, "--help")
    assert helped.returncode == 0
    assert len(helped.stdout.splitlines()) <= 60
    wrong = command(framework, "--network", "net1", "--out", tmp_path / "run")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("error: --network 'net1' is unknown")
    assert wrong.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs", "abc"], "--epochs"),
        (["--bogus"], "--bogus"),
        (["--network"], "--network"),
    ],
)
def test_what_does_not_parse_is_one_line_too(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as end:
        run_command(TrainOptions, lambda _: None, "python -m torch_impl.train")
    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (2, "")
    assert printed.err.startswith("error: ")
    assert printed.err.endswith("; see python -m torch_impl.train --help\n")
    assert printed.err.count("\n") == 1
    assert words in printed.err


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize(
    "output", [Terminal(), io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "ascii")]
)
@pytest.mark.parametrize(
    ("arguments", "explanation"),
    [
        (
            ["--epochs", "abc"],
            "Error parsing --epochs: no type matching {None}|INT could be instantiated from ['abc']",
        ),
        (["--bogus"], "Unrecognized options: --bogus"),
        (["--network"], "Missing value for argument '--network'. Expected 1 values"),
    ],
)
def test_a_mistake_is_explained_as_tyro_does_without_its_box(
    arguments, explanation, output, monkeypatch, capsys
):
    """tyro draws a box by what standard output is: in colours on a terminal, of dashes without UTF-8."""
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(SystemExit):
        run_command(TrainOptions, lambda _: None, "python -m torch_impl.train")
    assert capsys.readouterr().err == f"error: {explanation}; see python -m torch_impl.train --help\n"


def test_the_help_shows_choices_and_metavariables(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        run_command(TrainOptions, lambda _: None, "python -m torch_impl.train")
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert shown.startswith("usage: python -m torch_impl.train ")
    assert "--device auto|cpu|cuda" in shown
    assert "--data-dir DIR" in shown
    assert "(default: None)" not in shown
    assert "(or set MNIST_DIR)." in " ".join(shown.replace("│", "").split()), (
        "and no word on what it is without"
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_control_c_ends_a_run_with_what_it_had(framework, tmp_path):
    arguments = ["--dataset", "digits", "--network", "net9954", "--epochs", "500", "--out", tmp_path / "run"]
    # A shell that started the tests in the background has told its children to ignore Ctrl-C.
    heed = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start = f"runpy.run_module('{framework}_impl.train', run_name='__main__', alter_sys=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", heed + start, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    path = tmp_path / "run" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == ""
    assert "interrupted; kept:" in output
    assert load_checkpoint(path).step >= PER_EPOCH
    assert (tmp_path / "run" / "curves.png").exists()


def test_without_a_compiler_pytorch_says_so_and_trains(tmp_path):
    arguments = ["--dataset", "digits", "--network", "net9954", "--max-steps", "2", "--out", tmp_path / "run"]
    empty = tmp_path / "empty"
    empty.mkdir()
    done = command(
        "torch", *arguments, TORCHDYNAMO_DISABLE="0", PATH=str(empty), CXX="no-such-compiler",
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("torch.compile does not work here") == 1
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").step == 2


@pytest.mark.skipif(not any(Path(p, "g++").exists() for p in os.environ["PATH"].split(":")), reason="no g++")
def test_the_compiled_step_is_the_eager_one(tmp_path):
    arguments = ["--dataset", "digits", "--network", "net9954", "--max-steps", "3", "--precision", "float64"]
    compiled = command("torch", *arguments, "--out", tmp_path / "compiled", TORCHDYNAMO_DISABLE="0")
    assert compiled.returncode == 0, compiled.stderr
    assert "torch.compile does not work" not in compiled.stdout
    eager = command("torch", *arguments, "--out", tmp_path / "eager")
    assert eager.returncode == 0, eager.stderr
    losses = [np.load(tmp_path / name / "losses.npy") for name in ("compiled", "eager")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-12)
