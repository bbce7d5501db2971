"""The training benchmark measures what it says; the figures depend on the machine and are not tested."""

import importlib
import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from benchmarks.training.__main__ import SCRIPTED, TrainingOptions, main
from benchmarks.training.contenders import Contender, Ours, TorchScript, short_name
from flax import nnx
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines import flax_script, torch_script
from benchmarks.training import measure
from benchmarks.workers import Worker, environment, peak_memory, round_figures, time_calls, warm_up
from recipe.console import UserError
from recipe.data import Split
from recipe.networks import get_network
from recipe.recipes import get_recipe
from recipe.record import read_rows
from torch_impl.model import ConvNet

SMALL = replace(get_recipe("net9954", "reference"), batch=16)
OURS = Contender("torch", "net9954", SMALL)


@pytest.fixture
def tiny(digits):
    return Split(*(array[:300] for array in digits))


# -------------------------------------------------------------------------------------- what is measured


def test_flops_of_a_step_are_what_pytorch_counts(network):
    model = ConvNet(network, 0.0)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(4, 1, 28, 28)).sum().backward()
    contender = Contender("torch", network.name, replace(SMALL, batch=4))
    assert measure.step_flops(contender) == counter.get_total_flops()


@pytest.mark.parametrize("name", SCRIPTED)
def test_the_scripts_train_the_same_networks(name):
    model, optimizer = torch_script.make_model(name, "cpu")
    recipe = get_recipe(name, "reference")
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert sorted(shapes) == sorted(get_network(name).parameters.values())
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {recipe.dropout}
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (recipe.lr, recipe.momentum)
    assert torch_script.EPOCHS[name] == flax_script.EPOCHS[name] == recipe.epochs

    flax = nnx.eval_shape(lambda: flax_script.NETWORKS[name](rngs=nnx.Rngs(0)))
    leaves = [leaf.shape for leaf in jax.tree.leaves(nnx.state(flax, nnx.Param))]
    assert sorted(np.prod(shape) for shape in leaves) == sorted(np.prod(shape) for shape in shapes)

    images = torch.randn(2, 1, 28, 28)  # the same layers in the same order, not only the same weights
    ours = ConvNet(get_network(name), 0.0)
    ours.load_state_dict(dict(zip(ours.state_dict(), model.state_dict().values(), strict=True)))
    torch.testing.assert_close(model.eval()(images), ours.eval()(images))


def test_the_flax_script_has_the_same_logits(rng):
    flax, _, _ = flax_script.make_model("net9954")
    model, _ = torch_script.make_model("net9954", "cpu")
    for name, module in model.named_children():
        other = getattr(flax, name, None)
        if isinstance(module, nn.Conv2d):
            other.kernel.set_value(module.weight.detach().numpy().transpose(2, 3, 1, 0))
            other.bias.set_value(module.bias.detach().numpy())
        elif isinstance(module, nn.BatchNorm2d):
            assert other.momentum == 1 - module.momentum
    images = rng.normal(size=(2, 1, 28, 28)).astype(np.float32)
    flax.eval()
    expected = model.eval()(torch.from_numpy(images)).detach().numpy()
    logits = nnx.jit(lambda model, images: model(images))(flax, images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_scripts_train_on_the_same_images(digits):
    dataset = TorchScript(replace(OURS, kind="torch-script"), digits).loader.dataset
    np.testing.assert_array_equal(dataset.data.numpy(), digits.train_images)
    np.testing.assert_array_equal(dataset.targets.numpy(), digits.train_labels)
    batch = next(flax_script.make_batches(digits.train_images, digits.train_labels, None, 8))
    for index in range(8):
        image, label = dataset[index]
        np.testing.assert_allclose(batch["image"][index, :, :, 0], image[0].numpy(), atol=1e-6)
        assert batch["label"][index] == label


@pytest.mark.slow
def test_the_scripts_learn(digits):
    script = TorchScript(replace(OURS, kind="torch-script"), digits)
    losses = [torch_script.train(script.model, script.optimizer, script.loader, "cpu")[0] for _ in range(2)]
    assert losses[1] < losses[0]
    model, rng, losses = flax_script.make_model("net9954"), np.random.default_rng(0), []
    for _ in range(2):
        batches = flax_script.make_batches(digits.train_images, digits.train_labels, rng, 64)
        losses.append(flax_script.train(*model, batches)[0])
    assert losses[1] < losses[0]


def test_steps_go_on_where_the_last_call_stopped(tiny):
    ours = Ours(OURS, tiny)
    seen = []
    ours.trainer.train = lambda plan, advance: seen.append(plan.indices)  # pyright: ignore
    ours.run_steps(2)
    ours.run_steps(3)
    np.testing.assert_array_equal(np.concatenate(seen), ours.plan.indices[:5])
    ours.run_steps(ours.plan.steps - 4)  # more than the epoch has left
    np.testing.assert_array_equal(seen[-1], ours.plan.indices[: ours.plan.steps - 4])


def test_training_stops_at_the_target_or_with_the_schedule(tiny):
    ours = Ours(OURS, tiny)
    reached = ours.run_to_target(2, 0, target=0.01)
    assert (reached["epochs"], reached["reached"]) == (1, True)
    missed = ours.run_to_target(2, 0, target=1.1)
    assert (missed["epochs"], missed["reached"]) == (2, False)
    assert missed["best"] >= reached["best"], "each starts from the same weights"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_bfloat16_trains_about_as_well_and_keeps_float32_weights(kind, digits):
    recipe = replace(get_recipe("net9954", "tuned"), batch=64, epochs=5)
    losses, accuracies = [], []
    for precision in ("float32", "bfloat16"):
        ours = Ours(Contender(kind, "net9954", recipe, precision=precision), digits)
        losses.append(ours.trainer.train(ours.plan, lambda _: None)[0][0])
        for plan in ours.plans:
            ours.trainer.train(plan, lambda _: None)
        accuracies.append(ours.trainer.evaluate()[1])
        assert {str(tensor.dtype) for tensor in ours.trainer.tensors().values()} == {"float32"}
        assert ours.trainer.predict().dtype == np.float32
    assert 0 < abs(losses[0] - losses[1]) < 0.02  # bfloat16 has 8 bits
    assert accuracies[1] >= max(0.9, accuracies[0] - 0.03)


# --------------------------------------------------------------------------------------- worker processes


@pytest.mark.parametrize(
    ("module", "method", "argument", "words"),
    [
        ("os", "stat", "missing", "os: FileNotFoundError: .*missing"),
        ("os", "_exit", 3, "os: its process died .exit code 3"),
        ("time", "sleep", 60, "time: no answer in 1 s"),
    ],
)
def test_a_worker_that_fails_is_one_line(module, method, argument, words):
    with Worker(module, importlib.import_module, module) as worker:
        worker.timeout_s = 1 if method == "sleep" else 60
        with pytest.raises(UserError, match=words):
            worker.call(method, argument)
    assert not worker.process.is_alive()


def test_a_worker_has_its_own_environment_cores_and_memory():
    ballast = bytearray(b"x" * 300_000_000)
    environment = {"LOCKSTEP_TEST": "1"}
    with Worker("os", importlib.import_module, "os", environment=environment, cores=1) as worker:
        assert worker.call("getenv", "LOCKSTEP_TEST") == "1"
        assert len(worker.call("sched_getaffinity", 0)) == 1
        assert 5 < worker.start_memory < 250 < peak_memory()
    assert "LOCKSTEP_TEST" not in os.environ
    del ballast


def test_warm_up_ends_when_latencies_settle():
    clock = iter([*range(60_000_000, 6_000_000, -1_000_000), *[6_000_000] * 1000])
    calls = []

    def call() -> None:
        calls.append(next(clock))
        end = time_ns() + calls[-1] // 10
        while time_ns() < end:
            pass

    from time import perf_counter_ns as time_ns

    assert not warm_up(call, windows=2)
    assert warm_up(call, windows=500)
    assert len(calls) > 15


def test_timing_makes_at_least_ten_calls():
    latencies = time_calls(lambda: None, 0)
    assert len(latencies) == 10
    assert latencies.dtype == np.int64


def test_figures_have_six_digits():
    assert round_figures({"a": 1.23456789, "b": 1234567, "c": None}) == {
        "a": 1.23457,
        "b": 1234567,
        "c": None,
    }


# ------------------------------------------------------------------------------------------- the program


def test_speedups_are_paired_by_round(monkeypatch, tiny):
    seconds = {"torch-script": [4, 4, 3], "torch": [1, 2, 3], "jax": [2, 2, 2]}

    class Fake:
        def __init__(self, label, make, contender, *_, **__):
            self.times = iter([9, 9, *seconds.get(getattr(contender, "kind", ""), [])])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def time(self, *_):
            return next(self.times)

        def call(self, *_):
            return 1e9

        def memory(self):
            return 1.0

    monkeypatch.setattr(measure, "Worker", Fake)
    contenders = [replace(OURS, kind=kind) for kind in seconds]
    script, torch_row, jax_row = measure.measure_steps(contenders, tiny, rounds=3, steps=1, epochs=0)
    assert "speedup" not in script and "speedup" not in jax_row
    assert (torch_row["step_ms"], torch_row["step_ms_low"], torch_row["step_ms_high"]) == (2000, 1000, 3000)
    assert (torch_row["speedup"], torch_row["speedup_low"], torch_row["speedup_high"]) == (2, 1, 4)
    assert torch_row["limit_ms"] == pytest.approx(1e3 * measure.step_flops(OURS) / 1e9, rel=1e-4)
    assert torch_row["times_limit"] == pytest.approx(2000 / torch_row["limit_ms"], rel=1e-4)


@pytest.mark.slow
def test_the_whole_benchmark_in_small(tmp_path, monkeypatch, capsys):
    """With real processes; rows go beside the runs, and the tables fit 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    options = TrainingOptions(
        network="net9954",
        contenders=("torch-script", "torch"),
        batch=64,
        rounds=2,
        steps=2,
        dataset="digits",
        device="cpu",
    )
    main(options)
    script, ours = read_rows("training", tmp_path / "runs" / "bench", measure="steps")
    assert (script["contender"], ours["contender"]) == ("torch-script", "torch")
    for row in (script, ours):
        assert (row["network"], row["batch"], row["dataset"]) == ("net9954", 64, "digits")
        assert row["step_ms_low"] <= row["step_ms"] <= row["step_ms_high"]
        assert row["epoch_s"] > 0 and row["peak_mib"] > 50
    assert ours["epoch_accuracy"] > 0 and ours["speedup"] > 0
    main(replace(options, contenders=("torch",), batches=(32,)))
    (row,) = read_rows("training", tmp_path / "runs" / "bench", measure="batches")
    assert row["batch"] == 32 and row["peak_mib"] >= row["start_mib"] > 50
    main(replace(options, contenders=("torch",), time_to_accuracy=(1,), seeds=2))
    (row,) = read_rows("training", tmp_path / "runs" / "bench", measure="accuracy")
    assert (row["seeds"], row["reached"], row["epochs"]) == (2, 0, 1)
    assert row["seconds_low"] < row["seconds"] < row["seconds_high"]
    printed = capsys.readouterr().out
    assert "TORCHDYNAMO_DISABLE is set" in printed  # see conftest.py
    assert "…" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_profile(kind, tiny, monkeypatch):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    rows = measure.measure_profile(replace(OURS, kind=kind), tiny, steps=2)
    *operations, whole = rows
    assert whole["operation"] == "whole step" and whole["share"] == 1
    assert len(operations) == measure.OPERATIONS
    assert all(row["step_ms"] > 0 for row in operations)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "net1"}, "net1"),
        ({"recipe": "best"}, "best"),
        ({"contenders": ()}, "--contenders"),
        ({"rounds": 0}, "--rounds 0"),
        ({"batches": (0,)}, "--batches 0"),
        ({"batches": (4096,)}, "a batch of 4096 is out of range; give 1 to 1437"),
        ({"publish": True}, "--publish needs MNIST"),
    ],
)
def test_bad_options_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        main(replace(TrainingOptions(dataset="digits", device="cpu"), **changes))


def test_frameworks_are_imported_only_where_they_are_used():
    program = (
        "import sys, benchmarks.training.__main__, benchmarks.inference.__main__;"
        "assert not {'torch', 'jax', 'onnxruntime'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_names_of_compiled_kernels():
    names = {
        "aten::mkldnn_convolution": "aten::mkldnn_convolution",
        "graph_0_cpp_fused_max_pool2d_native_batch_norm_7": "fused kernels with max_pool",
        "graph_0_cpp_fused__native_batch_norm_legit_functional_add_1": "fused kernels with batch_norm",
        "graph_1_cpp_fused_add_0": "fused kernels, others",
        "## Call CompiledFxGraph fk2s266d ##": "calls of compiled graphs",
    }
    assert {name: short_name(name) for name in names} == names


def test_environment_of_a_worker():
    assert environment("cpu")["JAX_PLATFORMS"] == "cpu"
    assert "JAX_PLATFORMS" not in environment("cuda")
