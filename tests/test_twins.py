"""The two training packages are twins: same files, same functions, same parameters; imports run one way."""

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from benchmarks.twins import shared_lines
from tests.helpers import ROOT

TWINS = ("torch_impl", "jax_impl")
# What only one has, or has with other parameters, and why.
EXCEPTIONS = {
    "torch_impl/model.py": {
        "ConvNet.forward(self, x, dropout_keys)": "PyTorch's name of a call",
        "Convolution.forward(self, x)": "PyTorch's name of a call",
        "BatchNorm.forward(self, x)": "PyTorch's name of a call",
        "drop(x, rate, key, element, first)": "it asks x where it is",
    },
    "jax_impl/model.py": {
        "ConvNet.__call__(self, x, dropout_keys)": "Flax's name of a call",
        "Convolution.__call__(self, x)": "Flax's name of a call",
        "BatchNorm.__call__(self, x)": "Flax's name of a call",
        "drop(x, rate, key, element, first, on_cpu)": "a traced array has no place",
        "with_tensors(model, tensors)": "a step of JAX takes and returns all that it changes",
        "tensors_of(model, kind)": "a step of JAX takes and returns all that it changes",
    },
    "torch_impl/devices.py": {
        "Devices.sum_in_place(self, tensors)": "XLA puts the sums into one exchange by itself",
        "select_devices(name)": "a process of PyTorch takes one device",
    },
    "jax_impl/devices.py": {
        "Devices.on_cpu(self)": "a tensor of PyTorch says it, a traced array does not",
        "Devices.fetch(self, arrays)": "a process of PyTorch has only one device",
        "Devices.share_steps(self, steps_fn)": "a process of PyTorch has only one device",
        "Devices.count(self)": "a field in PyTorch, which is told; JAX counts its mesh",
        "Devices.index(self)": "a field in PyTorch, which is told; JAX asks its mesh",
        "select_devices(name, count)": "a process of PyTorch takes one device",
    },
    "torch_impl/train.py": {
        "make_optimizer(recipe, model)": "an optimizer of PyTorch holds the parameters and the momentum",
        "train_step(optimizer, devices, loss_fn, update_fn, step)": "it changes the model in place",
        "update(optimizer, network, on_grid, state, step)": "the gradients are with the parameters",
    },
    "jax_impl/train.py": {
        "make_optimizer(recipe)": "an optimizer of Optax is told the parameters at each step",
        "train_step(model, recipe, dtype, on_grid, padded, labels, state, step)": "it returns a new state",
        "update(optimizer, network, on_grid, state, grads, step)": "the gradients are values",
    },
}

# Who may import whom, of ours; further down: of the frameworks.
IMPORTS = {
    "recipe": set(),
    "torch_impl": {"recipe"},
    "jax_impl": {"recipe"},
    "lockstep": set(),
    "export": {"recipe", "torch_impl", "jax_impl"},
    "benchmarks": {"recipe", "torch_impl", "jax_impl", "lockstep", "export"},
}
COMMANDS = {  # the comparison of the project's own trainers; that of models stands alone
    "lockstep/twins.py": {"recipe", "torch_impl", "jax_impl", "benchmarks"},  # it writes to the record
    "lockstep/runs.py": {"recipe"},
    "lockstep/figure.py": {"recipe"},
}
TORCH, JAX = {"torch", "torchvision"}, {"jax", "flax", "optax", "tensorflow_datasets"}
FRAMEWORKS = {"recipe": set(), "torch_impl": TORCH, "jax_impl": JAX}


def signatures(path: Path) -> Iterator[str]:
    """Public classes, functions and methods, with their parameters, in order."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        yield signature(node)
        if isinstance(node, ast.ClassDef):
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef))
            for method in methods:
                if not method.name.startswith("_") or method.name == "__call__":
                    yield f"{node.name}.{signature(method)}"


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return node.name
    arguments = node.args
    assert not (arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs), (
        node.name
    )
    return f"{node.name}({', '.join(argument.arg for argument in arguments.args)})"


@pytest.mark.parametrize("file", ["data.py", "devices.py", "model.py", "ops.py", "train.py"])
def test_twins_have_the_same_functions_with_the_same_parameters_in_the_same_order(file):
    torch, jax = (
        [
            name
            for name in signatures(ROOT / package / file)
            if name not in EXCEPTIONS.get(f"{package}/{file}", {})
        ]
        for package in TWINS
    )
    assert torch == jax
    assert len(torch) > {"data.py": 0, "devices.py": 4, "ops.py": 0}.get(file, 6)


def test_every_exception_is_one():
    for name, exceptions in EXCEPTIONS.items():
        package, file = name.split("/")
        other = next(twin for twin in TWINS if twin != package)
        assert exceptions.keys() <= set(signatures(ROOT / name))
        assert not exceptions.keys() & set(signatures(ROOT / other / file))


@pytest.mark.parametrize("file", ["model.py", "train.py"])
def test_at_least_half_of_the_lines_are_shared(file):
    ours, theirs = (
        [line for line in (ROOT / package / file).read_text().splitlines() if line] for package in TWINS
    )
    share = 2 * len(shared_lines(ours, theirs)) / (len(ours) + len(theirs))
    print(f"{file}: {len(ours)} and {len(theirs)} lines, {share:.0%} shared")
    assert share >= 0.5


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = chain(
        (alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names),
        (node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)),
    )
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("package", IMPORTS)
def test_imports_run_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        name = str(path.relative_to(ROOT))
        allowed = {package} | IMPORTS[package] | COMMANDS.get(name, set())
        assert imported(path) & {*IMPORTS, "tests"} <= allowed, name
        if package in FRAMEWORKS:
            assert imported(path) & (TORCH | JAX) <= FRAMEWORKS[package], name


def test_no_test_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "tests":
                assert not any(alias.name.startswith("test_") for alias in node.names), path
            elif isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("tests.test_"), path
