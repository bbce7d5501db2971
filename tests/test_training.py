"""The training benchmark measures what it says; the figures depend on the machine and are not tested."""

import importlib
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training
from benchmarks.baselines import flax_script, torch_script
from benchmarks.record import read_rows
from benchmarks.training import (
    BASELINE,
    BASELINE_EPOCHS,
    SCRIPTED,
    Contender,
    Ours,
    Script,
    TrainingOptions,
    main,
)
from benchmarks.workers import Worker, _serve, convolution_flops
from recipe.console import UserError
from recipe.networks import Conv, get_network
from recipe.recipes import get_recipe
from torch_impl.devices import select_devices
from torch_impl.model import ConvNet

SMALL = replace(get_recipe("net9954", "reference"), batch=16)
OURS = Contender("torch", "net9954", SMALL)


@pytest.fixture
def tiny(digits):
    arrays = ("train_images", "train_labels", "val_images", "val_labels")
    return replace(digits, **{name: getattr(digits, name)[:300] for name in arrays})


def test_flops_of_a_step_are_what_pytorch_counts(network):
    """Forward only with depthwise convolutions: PyTorch counts their gradients as if they were not."""
    model = ConvNet(network, 0.0, select_devices("cpu"))
    depthwise = any(
        isinstance(layer.operation, Conv) and layer.operation.depthwise for layer in network.layers
    )
    with FlopCounterMode(display=False) as counter:
        total = model(torch.zeros(4, 1, 28, 28)).sum()
        if not depthwise:
            total.backward()
    contender = Contender("torch", network.name, replace(SMALL, batch=4))
    ours = 4 * sum(convolution_flops(network)) if depthwise else training.step_flops(contender)
    assert ours == counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTED)
def test_the_scripts_train_the_same_networks(name, rng):
    """All three have the same logits with the same weights, and the settings of `reference`."""
    recipe = get_recipe(name, "reference")
    model = getattr(torch_script, name)().eval()
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {recipe.dropout}
    for script in (torch_script, flax_script):
        assert (recipe.lr, recipe.momentum) == (script.LEARNING_RATE, script.MOMENTUM)
    images = rng.normal(size=(2, 1, 28, 28)).astype(np.float32)
    ours = ConvNet(get_network(name), 0.0, select_devices("cpu"))
    theirs = [tensor for key, tensor in model.state_dict().items() if "num_batches" not in key]
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs, strict=True)))
    expected = ours.eval()(torch.from_numpy(images))
    torch.testing.assert_close(model(torch.from_numpy(images)), expected)

    flax = getattr(flax_script, name)()
    flax.eval()
    layers = [layer for _, layer in nnx.iter_graph(flax)]
    theirs = [layer for layer in layers if isinstance(layer, nnx.Conv)]
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for conv, other in zip(convolutions, theirs, strict=True):
        other.kernel.set_value(conv.weight.detach().numpy().transpose(2, 3, 1, 0))
        if conv.bias is not None:
            other.bias.set_value(conv.bias.detach().numpy())
    assert {layer.momentum for layer in layers if isinstance(layer, nnx.BatchNorm)} == {0.9}
    assert {layer.rate for layer in layers if isinstance(layer, nnx.Dropout)} == {recipe.dropout}
    logits = nnx.jit(lambda model, images: model(images))(flax, images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-5)  # float32 sums of a few hundred


@pytest.mark.slow
@pytest.mark.parametrize("kind", training.SCRIPTS)
def test_the_scripts_train_on_the_same_images_and_learn(kind, digits):
    script = Script(Contender(kind, "net9954", SMALL), digits)
    first = next(iter(script.make_batches()))
    image, label = first.values() if isinstance(first, dict) else first
    pixels = (digits.train_images.reshape(-1, 784) / 255 - 0.1307) / 0.3081
    distances = np.abs(pixels - np.asarray(image[0]).reshape(784)).max(1)
    assert distances.min() < 1e-6
    assert digits.train_labels[distances.argmin()] == label[0]
    batches = list(script.make_batches())[:20]
    losses = [script.train(batches)[0] for _ in range(3)]
    assert losses[-1] < losses[0]


def test_steps_go_on_where_the_last_call_stopped(tiny):
    ours = Ours(OURS, tiny)
    seen = []
    ours.trainer.train = lambda plan, advance: seen.append(plan.indices)  # pyright: ignore
    ours.run_steps(2)
    ours.run_steps(3)
    np.testing.assert_array_equal(np.concatenate(seen), ours.plan.indices[:5])
    ours.run_steps(ours.plan.steps - 4)  # more than the epoch has left
    np.testing.assert_array_equal(seen[-1], ours.plan.indices[: ours.plan.steps - 4])


def test_a_whole_training_knows_when_it_reached_the_target(tiny):
    ours = Ours(replace(OURS, recipe=replace(OURS.recipe, epochs=2)), tiny)
    for target, epochs in ((0.01, 1), (1.1, 2)):
        row = ours.run_whole(0, target)
        assert (row["epochs"], row["reached"]) == (epochs, target < 1)
        assert row["seconds"] == row["whole_s"] if epochs == 2 else row["seconds"] < row["whole_s"]


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
    assert 0 < abs(losses[0] - losses[1]) < 0.02  # bfloat16 has 8 bits
    assert accuracies[1] >= max(0.9, accuracies[0] - 0.03)


@pytest.mark.subprocess
def test_a_worker_has_its_own_environment_and_fails_in_one_line():
    environment = {"LOCKSTEP_TEST": "1"}
    with Worker("os", importlib.import_module, "os", environment=environment, cores=1) as worker:
        assert worker.call("getenv", "LOCKSTEP_TEST") == "1"
        assert len(worker.call("sched_getaffinity", 0)) == 1
        with pytest.raises(UserError, match=r"os: FileNotFoundError: .*missing"):
            worker.call("stat", "missing")
    assert not worker.process.is_alive()
    with Worker("os", importlib.import_module, "os") as worker, pytest.raises(UserError, match="exit code 3"):
        worker.call("_exit", 3)
    assert "LOCKSTEP_TEST" not in os.environ


@pytest.mark.parametrize("module", ["os", "missing"])
def test_a_worker_whose_parent_is_gone_says_nothing(module):
    ours, its = multiprocessing.Pipe()
    ours.close()
    _serve(its, importlib.import_module, (module,), None)


@pytest.mark.slow
def test_the_whole_benchmark_in_small(tmp_path, monkeypatch):
    """With real processes; rows go beside the runs."""
    monkeypatch.chdir(tmp_path)
    contenders, small = ("torch-script", "torch"), {"rounds": 3, "steps": 2, "dataset": "digits"}
    options = TrainingOptions(network="net9954", contenders=contenders, device="cpu", **small)
    main(options)
    script, ours = read_rows("training", tmp_path / "runs" / "bench", measure="steps")
    assert (script["contender"], ours["contender"]) == contenders
    for row in (script, ours):
        assert row["step_ms_low"] <= row["step_ms"] <= row["step_ms_high"]
        assert row["times_limit"] == pytest.approx(row["step_ms"] / row["limit_ms"], rel=1e-4)
    assert ours["speedup"] == pytest.approx(script["step_ms"] / ours["step_ms"], rel=1e-4)
    assert ours["epoch_accuracy"] > 0 and script["epoch_s"] > 0
    main(replace(options, contenders=("torch",), time_to_accuracy=1, seeds=2))
    row, baseline = read_rows("training", tmp_path / "runs" / "bench", measure="accuracy")
    assert (row["seeds"], row["reached"], row["epochs"]) == (2, 0, 1)
    assert (baseline["network"], baseline["schedule"], baseline["ratio"]) == (BASELINE, BASELINE_EPOCHS, 1)
    assert row["ratio"] < 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "net1"}, "net1"),
        ({"recipe": "best"}, "best"),
        ({"contenders": ()}, "--contenders"),
        ({"network": "net9808", "contenders": ("jax-script",)}, "--contenders"),
        ({"rounds": 0}, "--rounds 0"),
        ({"publish": True}, "--publish needs MNIST"),
    ],
)
def test_bad_options_are_named(changes, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        main(replace(TrainingOptions(dataset="digits", device="cpu"), **changes))


def test_frameworks_are_imported_only_where_they_are_used():
    program = (
        "import sys, benchmarks.training, benchmarks.inference, benchmarks.accuracy;"
        "assert not {'torch', 'jax'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
