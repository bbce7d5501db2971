"""`lockstep.compare`: equal pairs are equal, faults are found where they are, mistakes are one line."""

import io
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from rich.console import Console
from torch import nn

import lockstep
from lockstep import pair as pair_file
from lockstep.describe import describe
from lockstep.errors import UserError
from lockstep.result import Difference, Result
from tests.helpers import ROOT
from tests.pairs import __main__ as bench
from tests.pairs import randomise

X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
WINDOW = np.hanning(8)[1:-1]


class TorchDense(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class Dense(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


def torch_dense():
    return randomise(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)))


def compare(reference, port, inputs=X, **options):
    return lockstep.compare(reference, port, inputs, **{"float32": False, **options})


# --- the bench ---------------------------------------------------------------------------------------------


def test_an_equal_pair_is_equal_in_both_precisions():
    result = bench.compare("mlp")
    assert result.equal, str(result)
    assert "the outputs in float32" in result.compared and "1 output" in result.compared


@pytest.mark.parametrize("fault", bench.faults("mlp"))
def test_a_fault_is_found(fault):
    found = bench.find("mlp", fault)
    assert found.place and found.cause, str(found.result)


@pytest.mark.slow
def test_every_fault_of_the_bench_is_found():
    found = [bench.find(pair, fault) for pair in bench.PAIRS for fault in bench.faults(pair)]
    assert sum(one.place for one in found) >= 109, [one[:2] for one in found if not one.place]
    assert sum(one.cause for one in found) >= 108, [one[:2] for one in found if not one.cause]


@pytest.mark.slow
@pytest.mark.parametrize("pair", bench.PAIRS)
def test_no_false_alarm_over_three_seeds(pair):
    for seed in range(3):
        result = bench.compare(pair, seed=seed)
        assert result.equal, f"seed {seed}\n{result}"


# --- models of many forms ----------------------------------------------------------------------------------


def test_a_comparison_leaves_the_models_as_they_are():
    theirs, ours = torch_dense(), Dense(nnx.Rngs(0))
    before = [p.detach().clone() for p in theirs.parameters()], ours.first.kernel[...]
    assert compare(theirs, ours).equal
    assert all(torch.equal(a, b) for a, b in zip(before[0], theirs.parameters(), strict=True))
    assert (before[1] == ours.first.kernel[...]).all()
    assert ours.first.kernel[...].dtype == jnp.float32
    assert not jax.config.jax_enable_x64


def test_a_layer_of_another_width_is_different():
    port = Dense(nnx.Rngs(0))
    port.last = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    assert not compare(torch_dense(), port).equal


def test_outputs_of_other_names_are_paired_and_noted():
    class Named(TorchDense):
        def forward(self, x):
            return {"logits": super().forward(x)}

    class Port(Dense):
        def __call__(self, x):
            return {"out": super().__call__(x)}

    result = compare(Named(), Port(nnx.Rngs(0)))
    assert result.equal, str(result)
    assert any("logits" in note and "out" in note for note in result.notes), result.notes


@pytest.mark.parametrize("alone", ["reference", "port"])
def test_an_output_that_one_side_lacks_is_a_difference(alone):
    class Both(TorchDense):
        def forward(self, x):
            hidden = torch.relu(self.first(x))
            return (self.last(hidden), hidden) if alone == "reference" else (self.last(hidden),)

    class Port(Dense):
        def __call__(self, x):
            hidden = nnx.relu(self.first(x))
            return (self.last(hidden),) if alone == "reference" else (self.last(hidden), hidden)

    result = compare(Both(), Port(nnx.Rngs(0)))
    assert [difference.kind for difference in result.differences] == ["missing"]


@pytest.mark.parametrize("fault", [False, True])
def test_a_scalar_may_be_an_input_a_parameter_or_an_output(fault):
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(6, 3)
            self.gain = nn.Parameter(torch.tensor(1.5))

        def forward(self, x, t):
            y = super().forward(x) * self.gain.clone() * t
            return {"y": y, "loss": y.square().sum(1).mean(), "t": t * 2}

    def port(p, x, t):
        y = (x @ p["kernel"] + p["bias"]) * p["gain"] * t
        loss = (y**2).sum(1).mean() * (2 if fault else 1)
        return {"y": y, "loss": loss, "t": t * 2}

    params = {"kernel": np.zeros((6, 3)), "bias": np.zeros(3), "gain": np.zeros(())}
    optimizers = lambda p: torch.optim.SGD(p, 0.1), optax.sgd(0.1)
    given = X, np.float32(0.5)
    result = compare(Scaled(), lockstep.function(port, params), given, optimizers=optimizers, steps=2)
    assert result.equal is not fault and "3 outputs" in result.compared, str(result)


def test_a_cast_to_float32_is_no_difference_and_is_noted():
    class Casts(Dense):
        def __call__(self, x):
            return self.last(nnx.relu(self.first(x).astype(jnp.float32)).astype(x.dtype))

    result = compare(torch_dense(), Casts(nnx.Rngs(0)))
    assert result.equal, str(result)
    assert any("float32" in note and "test_compare.py" in note for note in result.notes), result.notes


def test_rounding_in_float32_is_measured_against_the_noise_floor():
    class Noisy(Dense):
        def __call__(self, x):
            x = self.first(x)
            return self.last(nnx.relu((x + 1e3) - 1e3))  # exact enough in float64, not in float32

    result = compare(torch_dense(), Noisy(nnx.Rngs(0)), float32=True)
    assert result.first is not None and result.first.kind == "float32", str(result)


def test_a_stopped_gradient_is_found_at_its_line():
    class Stopped(Dense):
        def __call__(self, x):
            return self.last(jax.lax.stop_gradient(nnx.relu(self.first(x))))

    result = compare(torch_dense(), Stopped(nnx.Rngs(0)))
    assert result.first is not None and result.first.kind == "gradient", str(result)
    assert "stop_gradient" in result.first.cause


def test_json_has_sources_without_folders():
    class Port(Dense):
        def __call__(self, x):
            return self.last(nnx.gelu(self.first(x)))

    content = json.loads(compare(torch_dense(), Port(nnx.Rngs(0))).to_json())
    assert content["equal"] is False
    sources = content["differences"][0]["port"]["sources"]
    assert sources[0][0] == "test_compare.py" and isinstance(sources[0][1], int)
    assert {"verdict", "notes", "versions", "seconds"} <= content.keys()
    assert all(len(line) <= 80 for line in str(compare(torch_dense(), Port(nnx.Rngs(0)))).splitlines())


@pytest.mark.parametrize("again", range(2))
def test_a_float64_constant_of_numpy_is_compared_in_float32_too(again):
    def port(p, x):
        return (x * WINDOW) @ p["kernel"] + jnp.where(p["bias"] > 0, p["bias"], WINDOW[:3])

    class Windowed(nn.Linear):
        def forward(self, x):
            window = torch.from_numpy(WINDOW).to(x.dtype)
            bias = torch.where(self.bias > 0, self.bias, window[:3])
            return nn.functional.linear(x * window, self.weight, bias)

    params = {"kernel": np.zeros((6, 3)), "bias": np.zeros(3)}
    result = compare(Windowed(6, 3), lockstep.function(port, params), float32=True)
    assert result.equal and "the outputs in float32" in result.compared, str(result)
    given = jax.tree.map(jnp.float32, params)
    assert port(given, jnp.asarray(X)).dtype == jnp.float32  # the port runs as before


# --- mistakes ----------------------------------------------------------------------------------------------


class NeedsMore(Dense):
    def __call__(self, x, scale):
        return super().__call__(x) * scale


class TorchNeedsMore(TorchDense):
    def forward(self, x, scale):
        return super().forward(x) * scale


class Silent(nn.Module):
    def forward(self, x):
        return "hello"


@pytest.mark.parametrize(
    ("reference", "port", "inputs", "options", "message"),
    [
        (Silent(), Dense(nnx.Rngs(0)), X, {}, "returns no tensor, so there is nothing to compare"),
        (torch_dense(), Dense(nnx.Rngs(0)), X[:0], {}, "returns only empty"),
        (torch_dense, Dense(nnx.Rngs(0)), X, {}, "the function torch_dense: call it"),
        (torch_dense(), linen.Dense(3), X, {}, r"give lockstep\.linen\(module, variables\)"),
        (torch_dense(), "nothing.onnx", X, {}, "there is no file"),
        (nn.Linear, Dense(nnx.Rngs(0)), X, {}, "the class Linear; call it"),
        (torch_dense(), Dense(nnx.Rngs(0)), X[:, :4], {}, "the PyTorch model cannot take these inputs"),
        (torch_dense(), NeedsMore(nnx.Rngs(0)), X, {}, "the JAX model cannot take these inputs"),
        (TorchNeedsMore(), Dense(nnx.Rngs(0)), X, {}, "the PyTorch model cannot take these inputs"),
        (torch_dense(), Dense(nnx.Rngs(0)), X, {"loss": torch.sum}, "loss must be a pair"),
        (torch_dense(), Dense(nnx.Rngs(0)), X, {"loss": (torch.sum, jnp.abs)}, "must be a scalar"),
        (torch_dense(), Dense(nnx.Rngs(0)), X, {"loss": (torch.abs, jnp.sum)}, "must be a scalar"),
        (torch_dense(), Dense(nnx.Rngs(0)), X, {"optimizers": (1, optax.sgd(1e-3))}, "optimizer"),
    ],
)
def test_a_mistake_is_one_line(reference, port, inputs, options, message):
    with pytest.raises(UserError, match=message) as caught:
        compare(reference, port, inputs, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("1 +", "fails: SyntaxError"),
        ("def reference(): pass", "must define the function port and inputs"),
        (
            "def reference(): 1 / 0\nport = inputs = lambda *a: 1",
            "reference in .* fails at line 1: ZeroDivision",
        ),
    ],
)
def test_a_faulty_file_is_one_line(text, message, tmp_path, capsys):
    path = tmp_path / "pair.py"
    if text is not None:
        path.write_text(text)
    assert pair_file.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert re.search(message, said)


# --- the command -------------------------------------------------------------------------------------------

PAIR = """
from flax import nnx
from torch import nn


def reference():
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


class Port(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x)).transpose(0, 3, 1, 2)
        return self.head(x.reshape(x.shape[0], -1))


def port():
    return Port(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((2, 3, 16, 16)).astype("float32")
"""


@pytest.mark.subprocess
@pytest.mark.slow
def test_the_command(tmp_path):
    path = tmp_path / "pair.py"

    def run(text):
        path.write_text(text)
        command = [sys.executable, "-m", "lockstep", str(path), "--json", str(tmp_path / "out.json")]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)

    done = run(PAIR)
    assert done.returncode == 1, done.stderr
    first = json.loads((tmp_path / "out.json").read_text())["differences"][0]
    assert "padding" in first["cause"] and ["pair.py", 16] in first["port"]["sources"]
    mended = run(PAIR.replace("strides=2,", "strides=2, padding=1,"))
    assert mended.returncode == 0, mended.stdout


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.hours  # for its memory
def test_a_resnet50_fits_into_5_gib():
    command = [sys.executable, "-m", "tests.resnet50", "compare"]
    said = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    assert float(said.split()[1]) <= 5 * 1024


# --- what a report may not say -----------------------------------------------------------------------------


def test_a_line_is_printed_as_it_is():
    lines = ["x[100:] ", "[bold]a:100: b[/bold]"]
    difference = Difference("values", " ".join(lines), cause=lines[1])
    result = Result([difference], notes=[lines[1]])
    screen = io.StringIO()
    Console(file=screen).print(result)
    for text in (str(result), screen.getvalue()):
        assert text.count(lines[1]) == 3 and lines[0] in text, text


@pytest.mark.parametrize("bias", [0.0, -100.0])
def test_an_output_that_is_one_number_is_noted(bias):
    theirs = torch_dense()
    with torch.no_grad():
        theirs[-1].bias += bias
    port = Dense(nnx.Rngs(0))
    dead = lockstep.function(lambda port, x: nnx.relu(port(x)), port)
    result = compare(nn.Sequential(theirs, nn.ReLU()), dead)
    assert result.equal and bool(result.notes) is bool(bias), str(result)


def test_channels_go_last_also_before_a_layer_that_moves_them():
    class Port(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(12, 4, (3, 3), rngs=nnx.Rngs(0))

        def __call__(self, x):
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
            return self.conv(x.reshape(b, h // 2, w // 2, 4 * c))

    reference = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3, padding=1))
    for channels, size in ((3, 8), (3, 6)):
        x = np.random.default_rng(0).standard_normal((2, channels, size, size)).astype(np.float32)
        assert compare(reference, Port(), x).equal


class Halved(nn.Module):
    """Means of neighbours, each weighted by the roots of both's numbers of neighbours, and a norm."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8)

    def forward(self, x, a):
        roots = a.sum(1).rsqrt()
        return self.norm((a * roots * roots[:, None]) @ self.linear(x))


def test_running_statistics_that_both_use_are_no_cause():
    class Port(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(6, 8, use_bias=False, rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(8, epsilon=1e-5, rngs=nnx.Rngs(0))

        def __call__(self, x, a):
            return self.norm(a @ self.linear(x) / a.sum(1, keepdims=True))

    neighbours = (np.random.default_rng(1).random((4, 4)) + np.eye(4) > 0.5).astype(np.float32)
    result = compare(Halved().eval(), Port(), (X, neighbours))
    assert not result.equal and "statistics" not in result.first.cause, str(result)


class Power(nn.Linear):
    def forward(self, x):
        return super().forward(x.exp() ** 2)


def test_a_function_is_named_only_if_no_simpler_one_gives_the_same_numbers():
    params = {"kernel": np.zeros((6, 3)), "bias": np.zeros(3)}
    port = lockstep.function(lambda p, x: jnp.exp(x) @ p["kernel"] + p["bias"], params)
    result = compare(Power(6, 3), port)
    assert not result.equal and "relu" not in str(result), str(result)
    x = np.abs(X) + 0.1
    assert describe(x, np.maximum(x, 0), (0, 1), []) == ""
    assert describe(x, x**2, (0, 1), []) == "square"
    assert describe(X, np.maximum(X, 0) ** 2, (0, 1), []) == "squared relu"
