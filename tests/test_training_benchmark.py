"""The training benchmark measures the right things; what it finds is the machine's matter and not tested."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import benchmarks.gpu
from benchmarks import training_page, training_precision, training_profile, training_runs, training_workers
from benchmarks.baselines import flax_script, torch_script
from benchmarks.tables import ROOT, fill_tables
from benchmarks.training import TrainingOptions, main
from benchmarks.training_contenders import SCRIPTED, Contender, LockstepTrainer, TorchScript, step_flops
from benchmarks.training_workers import Worker, workers_environment
from recipe.data import Split
from recipe.errors import UserError
from recipe.networks import get_network
from recipe.recipes import get_recipe
from torch_impl.model import ConvNet

SMALL = dataclasses.replace(get_recipe("net9954", "reference"), batch=16)


@pytest.fixture
def tiny(digits):
    """Few images, where only the mechanism matters."""
    return Split(*(array[:300] for array in digits))


def command(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=300
    )


# -------------------------------------------------------------------------------------- what is measured


def test_flops_of_a_step_are_what_pytorch_counts(network):
    model = ConvNet(network, 0.0)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(4, 1, 28, 28)).sum().backward()
    assert step_flops(network, 4) == counter.get_total_flops()


def test_an_epoch_of_net10040_is_1_26_tflop():
    assert round(step_flops(get_network("net10040"), 60_000) / 1e12, 2) == 1.26


@pytest.mark.parametrize("name", SCRIPTED)
def test_the_scripts_train_the_same_networks(name):
    model, optimizer = torch_script.make_model(name, "cpu")
    recipe = get_recipe(name, "reference")
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert sorted(shapes) == sorted(get_network(name).parameters.values())
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {recipe.dropout}
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (recipe.peak_rate, recipe.momentum)
    assert torch_script.EPOCHS[name] == flax_script.EPOCHS[name] == recipe.epochs

    theirs = nnx.eval_shape(lambda: flax_script.NETWORKS[name](rngs=nnx.Rngs(0)))
    leaves = [leaf.shape for leaf in jax.tree.leaves(nnx.state(theirs, nnx.Param))]
    assert sorted(np.prod(shape) for shape in leaves) == sorted(np.prod(shape) for shape in shapes)

    images = torch.randn(2, 1, 28, 28)  # the same layers in the same order, not only the same weights
    ours = ConvNet(get_network(name), 0.0)
    ours.load_state_dict(dict(zip(ours.state_dict(), model.state_dict().values(), strict=True)))
    torch.testing.assert_close(model.eval()(images), ours.eval()(images))


def test_the_scripts_network_in_flax_gives_the_same_logits(rng):
    theirs, _, _ = flax_script.make_model("net9954")
    model, _ = torch_script.make_model("net9954", "cpu")
    for name, module in model.named_children():
        other = getattr(theirs, name, None)
        if isinstance(module, nn.Conv2d):
            other.kernel.set_value(module.weight.detach().numpy().transpose(2, 3, 1, 0))
            other.bias.set_value(module.bias.detach().numpy())
        elif isinstance(module, nn.BatchNorm2d):
            assert other.momentum == 1 - module.momentum
            assert isinstance(other, nnx.BatchNorm)
    images = rng.normal(size=(2, 1, 28, 28)).astype(np.float32)
    theirs.eval()
    expected = model.eval()(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(theirs(images.transpose(0, 2, 3, 1)), expected, atol=1e-5)


def test_the_scripts_see_the_same_images(digits):
    script = TorchScript(Contender("torch-script", "net9954", SMALL), digits)
    dataset = script.loader.dataset
    np.testing.assert_array_equal(dataset.data.numpy(), digits.train_images)
    np.testing.assert_array_equal(dataset.targets.numpy(), digits.train_labels)
    batch = next(flax_script.make_batches(digits.train_images, digits.train_labels, None, 8))
    for index in range(8):
        image, label = dataset[index]
        np.testing.assert_allclose(batch["image"][index, :, :, 0], image[0].numpy(), atol=1e-6)
        assert batch["label"][index] == label


def test_the_scripts_learn(digits):
    script = TorchScript(Contender("torch-script", "net9954", SMALL), digits)
    before = torch_script.train(script.model, script.optimizer, script.loader, "cpu")
    after = torch_script.train(script.model, script.optimizer, script.loader, "cpu")
    assert after[0] < before[0]

    work = flax_script.make_model("net9954")
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(2):
        batches = flax_script.make_batches(digits.train_images, digits.train_labels, rng, 64)
        losses.append(flax_script.train(*work, batches)[0])
    assert losses[1] < losses[0]


def test_steps_go_on_where_the_last_call_stopped(tiny):
    trainer = LockstepTrainer(Contender("torch", "net9954", SMALL), tiny)
    seen = []
    trainer.trainer.train = lambda plan, done: seen.append(plan.images)  # pyright: ignore
    trainer.take(2)
    trainer.take(3)
    np.testing.assert_array_equal(np.concatenate(seen), trainer.plan.images[:5])
    trainer.take(len(trainer.plan) - 4)  # more than the epoch has left
    np.testing.assert_array_equal(seen[-1], trainer.plan.images[: len(trainer.plan) - 4])


def test_the_time_to_the_target_ends_with_it_or_with_the_schedule(tiny):
    trainer = LockstepTrainer(Contender("torch", "net9954", SMALL), tiny)
    reached = trainer.time_to_target(2, target=0.0)
    assert (reached["epochs"], reached["reached"]) == (1, True)
    missed = trainer.time_to_target(2, target=1.1)
    assert (missed["epochs"], missed["reached"], missed["of"]) == (2, False, 2)
    assert missed["accuracies"][0] == reached["accuracies"][0], "each starts from the same weights"


def test_ratios_are_paired_by_round():
    def row(*rounds: float) -> dict:
        return {"step_ms": {"median": float(np.median(rounds)), "rounds": list(rounds)}}

    ratios = training_runs.compare({"torch": row(1, 2, 3), "torch-script": row(4, 4, 3), "jax": row(2, 2, 2)})
    assert ratios.keys() == {"torch", "jax_over_torch"}
    assert ratios["torch"] == {"median": 2.0, "lowest": 1.0, "highest": 4.0}


# --------------------------------------------------------------------------------------- worker processes


class Faulty:
    """A contestant that fails in every way."""

    def __init__(self, contender, split):
        pass

    def raises(self):
        raise RuntimeError("two\nlines")

    def dies(self):
        os._exit(3)

    def hangs(self):
        import time

        time.sleep(60)

    def looks(self):
        return os.environ.get("LOCKSTEP_TEST")


@pytest.mark.parametrize(
    ("method", "words"),
    [("raises", "PyTorch: RuntimeError: two lines"), ("dies", "exit code 3"), ("hangs", "no answer")],
)
def test_a_worker_that_fails_is_one_line(method, words, tiny):
    contender = Contender("torch", "net9954", SMALL)
    with Worker(contender, tiny, make=Faulty, environment={"LOCKSTEP_TEST": "1"}) as worker:
        assert worker.call("looks")[1] == "1"
        assert worker.memory()["process_mib"] > 10
        worker.timeout_s = 0.5 if method == "hangs" else 60
        with pytest.raises(UserError, match=words):
            worker.call(method)
    assert not worker.process.is_alive()


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "before")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with workers_environment("cpu", fresh_caches=True):
        assert os.environ["JAX_PLATFORMS"] == "cpu"
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(os.environ["LOCKSTEP_CACHE"])
    assert os.environ["JAX_PLATFORMS"] == "before"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


# ------------------------------------------------------------------------------------------ the programs


def test_the_whole_benchmark_in_small(tmp_path, capsys):
    out = tmp_path / "result.json"
    main(
        TrainingOptions(
            network="net9954", frameworks="torch", batch=64, rounds=2, steps=2, epochs=1, batches=(32,),
            dataset="digits", out=out,
        )
    )  # fmt: skip
    result = json.loads(out.read_text())
    assert result["torch_compile"] is False  # see conftest.py
    assert result["data"]["name"] == "digits"
    found = result["networks"]["net9954"]
    assert found["contenders"].keys() == {"torch-script", "torch"}
    for figures in found["contenders"].values():
        step = figures["step_ms"]
        assert step["min"] <= step["median"] <= step["max"]
        assert len(step["rounds"]) == 2
        assert figures["times_limit"] == pytest.approx(step["median"] / found["limit_ms"])
        assert figures["epoch_s"] > 0
        assert figures["memory"]["process_mib"] > 50
    rate = found["matrix_flops_per_second"]["median"]
    assert found["limit_ms"] == pytest.approx(1e3 * step_flops(get_network("net9954"), 64) / rate)
    assert result["batch_sizes"]["torch"].keys() == {"32"}
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "TORCHDYNAMO_DISABLE is set" in printed
    assert "PyTorch against its script" in printed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "net1"}, "--network 'net1'"),
        ({"frameworks": "tensorflow"}, "--frameworks"),
        ({"rounds": 0}, "--rounds 0"),
        ({"batches": (0,)}, "--batches 0"),
        ({"batches": (4096,)}, "a batch of 4096 is out of range; give 1 to 1437"),
        ({"out": "result.txt"}, "must end in .json"),
    ],
)
def test_bad_options_are_named(changes, words, tmp_path):
    if "out" in changes:
        changes = {"out": Path(changes["out"])}
    with pytest.raises(UserError, match=words):
        main(dataclasses.replace(TrainingOptions(dataset="digits"), **changes))


def test_the_gpu_script_refuses_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = command("benchmarks.gpu")
    assert done.returncode == 2
    assert done.stderr == "error: PyTorch sees no CUDA device here; for a CPU there is benchmarks.training\n"


def test_the_parts_of_the_gpu_script_work(tiny, tmp_path, monkeypatch):
    """On the CPU and in small; lockstep and its figures are tests/test_parity.py's matter."""
    scale = benchmarks.gpu.Scale(
        device="cpu", networks=("net9954",), kinds=("torch",), rounds=1, steps=2, epochs=1, schedules=(),
        batches=(16,), batch=16, tries=False, seeds=2,
    )  # fmt: skip
    monkeypatch.setitem(benchmarks.gpu.PARTS, "gpu-lockstep", lambda *_: {"net9954": {}})
    benchmarks.gpu.measure(scale, tiny, {"about": "test"}, tmp_path)
    found = {path.stem: json.loads(path.read_text())["found"] for path in tmp_path.iterdir()}
    assert found.keys() == benchmarks.gpu.PARTS.keys()
    assert found["gpu-training"]["net9954"]["contenders"]["torch"]["step_ms"]["median"] > 0
    assert "failure" not in found["gpu-bfloat16"]["net9954"]
    assert len(found["gpu-time-to-accuracy"]["torch"]) == 1
    assert found["gpu-batches"]["torch"].keys() == {"16"}
    seeds = found["gpu-seeds"]["net9954"]["torch"]
    assert seeds["step_ms"].keys() == {"products", "grouped"} and seeds["seeds"].keys() == {"0", "1"}


def test_the_gpu_script_says_what_failed_and_goes_on(tiny, tmp_path, monkeypatch, capsys):
    def fails(*_: object) -> dict:
        raise UserError("no luck")

    monkeypatch.setattr(benchmarks.gpu, "PARTS", {"gpu-a": fails, "gpu-b": lambda *_: {"fine": 1}})
    benchmarks.gpu.measure(benchmarks.gpu.Scale(), tiny, {}, tmp_path)
    assert json.loads((tmp_path / "gpu-a.json").read_text())["found"] == {"failure": "no luck"}
    assert json.loads((tmp_path / "gpu-b.json").read_text())["found"] == {"fine": 1}
    benchmarks.gpu.measure(benchmarks.gpu.Scale(), tiny, {}, tmp_path / "late", deadline=0.0)
    assert "no time left for gpu-a" in capsys.readouterr().out


def test_lockstep_is_checked_in_a_worker(tiny):
    contender = Contender("lockstep", "net9954", SMALL, precision="float64")
    found = benchmarks.gpu.LockstepCheck(contender, tiny).compare(1, noise_floor=False)
    assert found["pairs"]["torch-jax"]["worst_loss_difference"] <= 1e-10


# -------------------------------------------------------------------------------------- reduced precision


@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_bfloat16_trains_about_as_well_and_keeps_float32_weights(kind, digits):
    recipe = dataclasses.replace(get_recipe("net9954", "tuned"), batch=64, epochs=5)
    found = {}
    for precision in ("float32", "bfloat16"):
        work = LockstepTrainer(Contender(kind, "net9954", recipe, precision=precision), digits)
        first, _ = work.trainer.train(work.plan, lambda _: None)
        for work.epochs in range(1, recipe.epochs):
            work.trainer.train(work.epoch_plan(), lambda _: None)
        found[precision] = first[0], work.trainer.evaluate()[1]
        assert {str(tensor.dtype) for tensor in work.trainer.tensors().values()} == {"float32"}
        assert work.trainer.predict().dtype == np.float32
    (loss, accuracy), (reduced_loss, reduced_accuracy) = found.values()
    assert 0 < abs(loss - reduced_loss) < 0.02  # bfloat16 has 8 bits
    assert reduced_accuracy >= accuracy - 0.03
    assert reduced_accuracy >= 0.9


def test_a_worker_imports_one_framework_only():
    program = (
        "import sys, benchmarks.training_workers, benchmarks.training_runs;"
        "assert not {'torch', 'jax'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert training_workers.make_contestant is not None


# --------------------------------------------------------------------------------------------- docs/speed.md


def test_the_page_shows_results_of_every_kind(monkeypatch):
    versions = {"torch": "1", "jax": "2", "flax": "3"}
    head = {
        "versions": versions,
        "gpu": None,
        "processor": "abacus",
        "cores": 2,
        "date": "today",
        "command": "c",
    }
    step = {"median": 12.345, "min": 12.0, "max": 13.0}
    steps = {
        "recipe": {"batch": 128}, "step_flops": 2e9, "limit_ms": 10.0,
        "speedups": {"torch": {"median": 3.21}}, "matrix_flops_per_second": {"median": 2e11},
        "contenders": {"torch": {"step_ms": step, "epoch_s": None, "compile_s": 1.0, "times_limit": 1.2}},
    }  # fmt: skip
    memory = {"process_mib": 321.0}
    size = {"us_per_image": 98.7, "memory_before_training": memory, "peak_memory": memory}
    target = {"of": 19, "reached": True, "epochs": 7, "seconds": 1.5, "accuracies": [0.99, 0.9941]}
    precision = {"step_ms": 5.0, "val_accuracy": 0.9876}
    results = {
        "training-cpu": {"networks": {"net1": steps}},
        "training-batches": {"batch_sizes": {"jax": {"64": size}}},
        "training-profile": {
            "network": "net1", "recipe": "r", "batch": 128, "ms_per_step": {"jax": {"dot": 3.0, "add": 1.0}}
        },
        "training-precision": {
            "network": "net1", "recipe": "r", "data": {"name": "mnist"},
            "found": {"jax": {"bfloat16": precision}},
        },
        "training-accuracy": {"time_to_accuracy": {"net1": {"recipe": {}, "jax": [target]}}},
        "gpu-training": {"found": {"net1": steps, "net2": {"failure": "no luck"}}},
        "gpu-tries": {"found": {"a": {"step_ms": step}, "b": {"failure": "bad flag"}}},
    }  # fmt: skip
    monkeypatch.setattr(
        training_page, "load_result", lambda name: head | results[name] if name in results else None
    )
    page = fill_tables((ROOT / "docs" / "speed.md").read_text(), training_page.TABLES)
    for words in (
        "12.35 | 12.00 to 13.00", "PyTorch 3.21x its script", "abacus, 2 cores",
        "| Flax | 64 | 98.7 | 321 | 321 |",
        "`dot` | 3.00 | 75%", "98.76 %", "| 19 | yes | 7 | 1.5 | 99.41 % |", "net2: no luck", "bad flag",
    ):  # fmt: skip
        assert words in page
    assert "Not measured yet" not in page


def test_precisions_are_compared(tiny):
    found = training_precision.measure_precisions("net9954", tiny, rounds=1, steps=1, kinds=("torch",))
    assert found["torch"].keys() == {"float32", "bfloat16"}
    for figures in found["torch"].values():
        assert figures["step_ms"] > 0
        assert 0 <= figures["val_accuracy"] <= 1


@pytest.mark.parametrize(("kind", "convolution"), [("torch", "aten::convolution_backward"), ("jax", "conv")])
def test_the_profile_names_the_convolutions(kind, convolution, tiny):
    found = training_profile.Profiler(Contender(kind, "net9954", SMALL), tiny).profile(1)
    assert any(name.startswith(convolution) for name in found)
    assert all(milliseconds >= 0 for milliseconds in found.values())
