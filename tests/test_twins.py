"""The two training packages are twins: same files, same functions in the same order, one-way imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What one framework needs and the other has built in, or needs by the way it works.
OWN = {
    "model.py": {
        "torch": {"forward", "convolve", "convolve_by_products", "number_elements"},
        "jax": {"__call__", "Convolution", "BatchNorm", "flax_path"},
    },
    "train.py": {
        # what a CUDA graph changes is memory at a fixed place
        "torch": {"Steps", "make_steps", "train_step", "update_parameters"},
        "jax": {"State", "train_steps", "logits"},  # what a compiled function changes is its argument
    },
    "seeds.py": {
        "torch": {"seeds_loss"},
        "jax": {"train_seeds_steps", "seeds_logits"},
    },
}


def names(path: Path) -> list[str]:
    """Public classes, functions and methods, in order."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        if isinstance(node, ast.ClassDef):
            found += [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
    return [name for name in found if not name.startswith("_") or name == "__call__"]


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.split(".")[0])
    return packages


@pytest.mark.parametrize("file", ["data.py", "model.py", "train.py", "seeds.py"])
def test_twins_have_the_same_functions_in_the_same_order(file):
    torch, jax = (
        [
            name
            for name in names(ROOT / f"{package}_impl" / file)
            if name not in OWN.get(file, {}).get(package, ())
        ]
        for package in ("torch", "jax")
    )
    assert torch == jax


@pytest.mark.parametrize("file", OWN)
def test_what_is_said_to_be_one_frameworks_own_is_there(file):
    for package, own in OWN[file].items():
        assert own <= set(names(ROOT / f"{package}_impl" / file))


def test_imports_run_one_way():
    layers = {
        "recipe": {
            "torch",
            "jax",
            "flax",
            "optax",
            "torch_impl",
            "jax_impl",
            "export",
            "benchmarks",
            "tests",
        },
        "torch_impl": {"jax", "flax", "optax", "jax_impl", "export", "benchmarks", "tests"},
        "jax_impl": {"torch", "torchvision", "torch_impl", "export", "benchmarks", "tests"},
        "export": {"benchmarks", "tests"},
        "benchmarks": {"tests"},
    }
    for layer, forbidden in layers.items():
        for path in (ROOT / layer).rglob("*.py"):
            assert not imported(path) & forbidden, path
