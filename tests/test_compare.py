"""`lockstep.compare`: equal pairs are equal, faults are found where they are, mistakes are one line."""

import json
import re
import subprocess
import sys
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from torch import nn

import lockstep
from lockstep import pair as pair_file
from recipe.console import UserError
from tests.helpers import ROOT
from tests.pairs import __main__ as bench
from tests.pairs import mlp, randomise

X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
TABLE = (ROOT / "docs" / "porting.md").read_text().split("<!-- faults -->")[1].split("<!-- end -->")[0]
ALL = [(pair, fault) for pair in bench.PAIRS for fault in bench.faults(pair)]
QUICK = ("default_epsilon", "tanh_gelu", "epsilon_outside", "dropout_on", "converted_transposed")


class TorchDense(nn.Module):
    """`torch_dense` with names for its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class Dense(nnx.Module):
    """A port of `torch_dense`."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


def torch_dense():
    return randomise(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)))


def compare(torch_model, flax_model, inputs=X, **options):
    return lockstep.compare(torch_model, flax_model, inputs, **{"float32": False, **options})


# --- the bench ---------------------------------------------------------------------------------------------


def test_there_are_enough_faults_and_the_page_has_them_all():
    assert len(ALL) >= 40
    rows = re.findall(r"^\| (\w+) \| ([\w ]+) \|", TABLE, re.MULTILINE)
    assert {(pair, fault.replace(" ", "_")) for pair, fault in rows if pair != "pair"} == set(ALL)


def test_the_page_keeps_the_promise():
    count, where, cause = map(int, re.findall(r"Of (\d+) faults (\d+) .* (\d+) with", TABLE)[0])
    assert where >= 0.95 * count
    assert cause >= 0.8 * count


def test_an_equal_pair_is_equal_in_both_precisions():
    result = bench.compare("mlp")
    assert result.equal, str(result)
    assert all(row.float32 is not None for row in result.rows if row.kind)
    assert max(row.output or 0 for row in result.rows) < 1e-14


@pytest.mark.parametrize("fault", QUICK)
def test_a_fault_is_found(fault):
    found = bench.find("mlp", fault)
    assert found.where, str(found.result)
    assert found.cause, str(found.result)


@pytest.mark.slow
@pytest.mark.hours
@pytest.mark.parametrize("pair", bench.PAIRS)
def test_every_fault_is_found_as_the_page_says(pair):
    for fault in bench.faults(pair):
        found = bench.find(pair, fault)
        start = bench.line(found).split(" | ")[:3]
        assert " | ".join(start) in TABLE, bench.line(found)


@pytest.mark.slow
@pytest.mark.hours
@pytest.mark.parametrize("pair", bench.PAIRS)
def test_no_false_alarm_over_ten_seeds(pair):
    for seed in range(10):
        result = bench.compare(pair, seed=seed)
        assert result.equal, f"seed {seed}\n{result}"


# --- models of many forms ----------------------------------------------------------------------------------


def test_a_comparison_leaves_the_models_as_they_are():
    theirs, ours = torch_dense(), Dense(nnx.Rngs(0))
    before = [p.detach().clone() for p in theirs.parameters()], ours.first.kernel[...]
    call = Dense.__call__
    assert compare(theirs, ours).equal
    assert all(torch.equal(a, b) for a, b in zip(before[0], theirs.parameters(), strict=True))
    assert (before[1] == ours.first.kernel[...]).all()
    assert Dense.__call__ is call
    assert not jax.config.jax_enable_x64


def test_a_layer_called_twice_has_two_rows():
    class Twice(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return {"y": self.layer(nnx.relu(self.layer(x))), "x": (x,)}

    class TorchTwice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return {"y": self.layer(torch.relu(self.layer(x))), "x": (x,)}

    result = compare(TorchTwice(), Twice())
    assert result.equal, str(result)
    assert [row.torch for row in result.rows][:2] == ["layer", "layer (call 2)"]


def test_pairs_say_what_belongs_together():
    class Crossed(Dense):
        def __init__(self, rngs):
            self.b, self.a = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.a(nnx.relu(self.b(x)))

    result = compare(torch_dense(), Crossed(nnx.Rngs(0)), pairs={"0": "b", "2": "a"})
    assert result.equal, str(result)
    assert [row.flax for row in result.rows[:2]] == ["b", "a"]


def test_what_has_no_counterpart_is_listed():
    theirs = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    result = compare(theirs, Dense(nnx.Rngs(0)))
    assert not result.equal
    assert result.first is not None and "Flax has no counterpart of 1" in result.first.cause
    assert [row.torch for row in result.rows if row.verdict == "not compared"] == ["1"]


def test_a_jitted_module_is_looked_into():
    class Jitted(Dense):
        @nnx.jit
        def __call__(self, x):
            return self.last(nnx.relu(self.first(x)))

    class Outer(nnx.Module):
        def __init__(self):
            self.inner, self.head = Jitted(nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.head(self.inner(x))

    result = compare(nn.Sequential(torch_dense(), nn.Linear(3, 2)), Outer())
    assert result.equal, str(result)
    assert [row.flax for row in result.rows[:3]] == ["inner/first", "inner/last", "head"]
    assert any("opaque" in note and "inner" in note for note in result.notes), result.notes


def test_a_layer_of_another_width_is_named_with_its_shapes():
    port = Dense(nnx.Rngs(0))
    port.last = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    theirs = nn.Sequential(OrderedDict(first=nn.Linear(6, 6), relu=nn.ReLU(), last=nn.Linear(6, 3)))
    result = compare(theirs, port)
    assert result.first is not None
    assert (
        result.first.cause == "last has weight (3, 6), bias (3,) in PyTorch; bias (4,), kernel (6, 4) in Flax"
    )
    port.last = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
    result = compare(torch_dense(), port)
    assert result.first is not None and "TypeError" in result.first.where and "in last" in result.first.where


def test_every_fault_has_its_cause():
    theirs = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6))

    class Norms(nnx.Module):
        def __init__(self):
            self.a = nnx.LayerNorm(6, rngs=nnx.Rngs(0))  # epsilon 1e-6, PyTorch's 1e-5
            self.b = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
            self.c = nnx.LayerNorm(6, epsilon=1e-4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.c(self.b(self.a(x)))

    lines = compare(theirs, Norms()).verdict.splitlines()
    assert len(lines) == 3, lines
    assert "epsilon=1e-05" in lines[1]
    assert lines[2].startswith("also: the output of 2 (Flax: c)") and "epsilon=1e-05" in lines[2]


def test_outputs_paired_by_order_and_unused_parameters_of_flax_are_noted():
    class Named(TorchDense):
        def forward(self, x):
            return {"logits": self.last(torch.relu(self.first(x)))}

    class Spare(Dense):
        def __init__(self):
            super().__init__(nnx.Rngs(0))
            self.spare = nnx.Linear(7, 8, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return {"out": super().__call__(x)}

    result = compare(Named(), Spare())
    assert result.equal, str(result)
    assert any("output['logits']" in note and "output['out']" in note for note in result.notes), result.notes
    assert any("spare/kernel" in note for note in result.notes), result.notes


@pytest.mark.parametrize("alone", ["PyTorch", "Flax"])
def test_an_output_that_one_side_lacks_is_listed(alone):
    """Without losses of what both return, the gradients of the whole models are of different objectives."""

    class Both(TorchDense):
        def forward(self, x):
            hidden = torch.relu(self.first(x))
            return (self.last(hidden), hidden) if alone == "PyTorch" else self.last(hidden)

    class Port(Dense):
        def __call__(self, x):
            hidden = nnx.relu(self.first(x))
            return self.last(hidden) if alone == "PyTorch" else (self.last(hidden), hidden)

    result = compare(Both(), Port(nnx.Rngs(0)), float32=True)
    assert result.equal, str(result)
    (row,) = [row for row in result.rows if row.verdict == "not compared"]
    assert row.name == "(output[1])"
    assert any("give losses of what both return" in note for note in result.notes)
    first = (lambda output: output[0].sum(), lambda output: output.sum())
    loss = first if alone == "PyTorch" else (lambda output: output.sum(), lambda output: output[0].sum())
    result = compare(Both(), Port(nnx.Rngs(0)), loss=loss)
    assert result.equal and not any("give losses" in note for note in result.notes), str(result)


def test_unused_parameters_are_named():
    class Spare(TorchDense):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(2, 2)

    result = compare(Spare(), Dense(nnx.Rngs(0)))
    assert result.equal, str(result)
    assert any("unused" in note and "spare.weight" in note for note in result.notes)


@pytest.mark.parametrize(
    ("torch_optimizer", "transform"),
    [(torch.optim.RMSprop, optax.sgd(1e-3)), (torch.optim.NAdam, optax.adam(1e-3))],
)
def test_no_cause_is_named_for_an_optimizer_whose_rule_is_not_known(torch_optimizer, transform):
    made = (lambda parameters: torch_optimizer(parameters, lr=1e-3), transform)
    result = compare(torch_dense(), Dense(nnx.Rngs(0)), optimizers=made)
    assert result.first is not None
    assert (result.first.what, result.first.cause) == ("parameter", ""), str(result)


def test_a_detached_output_has_no_array(tmp_path):
    class Detached(TorchDense):
        def forward(self, x):
            return self.last(torch.relu(self.first(x).detach()))

    result = compare(Detached(), Dense(nnx.Rngs(0)))
    assert result.first is not None and "detach" in result.first.cause, str(result)
    result.save_arrays(tmp_path / "first.npz")
    assert "flax" in np.load(tmp_path / "first.npz").files


def test_rounding_in_float32_is_measured_against_the_noise_floor():
    class Noisy(Dense):
        def __call__(self, x):
            x = self.first(x)
            return self.last(nnx.relu((x + 1e3) - 1e3))  # exact enough in float64, not in float32

    result = compare(torch_dense(), Noisy(nnx.Rngs(0)), float32=True)
    assert result.first is not None and result.first.what == "float32", str(result)


def test_the_arrays_reproduce_the_first_difference(tmp_path):
    result = bench.find("mlp", "default_epsilon").result
    result.save_arrays(tmp_path / "first.npz")
    with np.load(tmp_path / "first.npz", allow_pickle=False) as arrays:
        norm = mlp.torch_model().double().norm1
        expected = norm(torch.from_numpy(arrays["input"])).detach().numpy()
        np.testing.assert_allclose(arrays["torch_0"], expected, rtol=1e-12)
        assert np.abs(arrays["flax_0"] - expected).max() > 1e-9


# --- mistakes ----------------------------------------------------------------------------------------------


class NeedsMore(Dense):
    def __call__(self, x, scale):
        return super().__call__(x) * scale


class Silent(nn.Module):
    def forward(self, x):
        return "hello"


class NumPy(Dense):
    def __call__(self, x):
        return self.last(np.asarray(nnx.relu(self.first(x))))


@pytest.mark.parametrize(
    ("torch_model", "flax_model", "inputs", "options", "message"),
    [
        (Silent(), Dense(nnx.Rngs(0)), X, {}, "returns no tensor, so there is nothing to compare"),
        (torch_dense(), Dense(nnx.Rngs(0)), X[:0], {}, "returns only empty tensors"),
        (torch_dense(), Dense(nnx.Rngs(0)), X * np.nan, {}, "output has NaN"),
        (Dense(nnx.Rngs(0)), torch_dense(), X, {}, "the models are exchanged"),
        (torch_dense, Dense(nnx.Rngs(0)), X, {}, "not the function torch_dense; call it"),
        (torch_dense(), nnx.jit(Dense(nnx.Rngs(0))), X, {}, "what nnx.jit makes of it; give the module"),
        (torch_dense(), linen.Dense(3), X, {}, "flax.linen cannot be compared"),
        (torch_dense(), NumPy(nnx.Rngs(0)), X, {}, "no gradient: TracerArrayConversionError"),
        (torch_dense(), Dense(nnx.Rngs(0)), X, {"pairs": ["0"]}, "pairs must be a dictionary"),
        (
            torch_dense(),
            Dense(nnx.Rngs(0)),
            X,
            {"pairs": {"0": "last", "2": "last"}},
            "0 and 2 are both paired with Flax's last; choose one",
        ),
        (
            torch_dense(),
            Dense(nnx.Rngs(0)),
            X,
            {"loss": (torch.abs, jnp.sum)},
            "PyTorch loss must be a scalar",
        ),
        (torch.relu, Dense(nnx.Rngs(0)), X, {}, "the PyTorch model must be a torch.nn.Module, not"),
        (nn.Linear, Dense(nnx.Rngs(0)), X, {}, "not the class Linear; call it"),
        (torch_dense(), jax.jit(lambda x: x), X, {}, "the Flax model must be a flax.nnx.Module"),
        (torch_dense(), Dense(nnx.Rngs(0)), X[:, :4], {}, "the PyTorch model cannot take these inputs"),
        (torch_dense(), NeedsMore(nnx.Rngs(0)), X, {}, "the Flax model cannot take these inputs"),
        (torch_dense(), Dense(nnx.Rngs(0)), X, {"pairs": {"5": "last"}}, "PyTorch calls no layer '5'"),
        (torch_dense(), Dense(nnx.Rngs(0)), X, {"loss": torch.sum}, "loss must be a pair"),
        (torch_dense(), Dense(nnx.Rngs(0)), X, {"loss": (torch.sum, jnp.abs)}, "must be a scalar"),
        (
            torch_dense(),
            Dense(nnx.Rngs(0)),
            X,
            {"optimizers": (1, 2)},
            "Flax's must be an Optax|PyTorch's must",
        ),
        (
            torch_dense(),
            Dense(nnx.Rngs(0)),
            X,
            {"optimizers": (torch.optim.LBFGS, optax.sgd(1e-3))},
            "PyTorch's cannot take a step alone: .*closure",
        ),
    ],
)
def test_a_mistake_is_one_line(torch_model, flax_model, inputs, options, message):
    with pytest.raises(UserError, match=message) as caught:
        compare(torch_model, flax_model, inputs, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("1 +", "fails: SyntaxError"),
        ("def torch_model(): pass", "must define the function flax_model and inputs"),
        (
            "def torch_model(): 1 / 0\nflax_model = inputs = lambda *a: 1",
            "torch_model in .* fails at line 1: ZeroDivisionError",
        ),
    ],
)
def test_a_faulty_file_is_one_line(text, message, tmp_path):
    path = tmp_path / "pair.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        pair_file.main(pair_file.PairOptions(path))


# --- the command -------------------------------------------------------------------------------------------


@pytest.mark.subprocess
@pytest.mark.slow
def test_the_command_says_what_the_page_says(tmp_path):
    page = (ROOT / "docs" / "porting.md").read_text()
    source = re.findall(r"```python\n(import numpy.*?)```", page, re.DOTALL)[0]
    (tmp_path / "pair.py").write_text(source)

    def run():
        command = [
            sys.executable,
            "-m",
            "lockstep",
            str(tmp_path / "pair.py"),
            "--json",
            str(tmp_path / "out.json"),
        ]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)

    done = run()
    assert done.returncode == 1, done.stderr
    quoted = re.findall(r"```\n(first difference.*?)```", page, re.DOTALL)[0]
    assert quoted.strip() in done.stdout
    first = json.loads((tmp_path / "out.json").read_text())["first"]
    assert (first["torch"], first["what"]) == ("0", "output")
    mended = source.replace("strides=2,", "strides=2, padding=((1, 1), (1, 1)),")
    mended = mended.replace("return self.head(x.", "x = x.transpose(0, 3, 1, 2)\n        return self.head(x.")
    (tmp_path / "pair.py").write_text(mended)
    assert run().returncode == 0


@pytest.mark.subprocess
def test_importing_lockstep_imports_no_framework():
    code = "import lockstep, sys; sys.exit(bool({'torch', 'jax'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.subprocess
@pytest.mark.slow
def test_a_resnet50_takes_at_most_twice_the_memory_of_its_passes():
    def peak(what: str) -> float:
        command = [sys.executable, "-m", "tests.resnet50", what]
        return float(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.split()[1])

    assert peak("compare") <= 2 * peak("passes")
