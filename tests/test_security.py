"""No source of ours runs code from a file, unpickles, or downloads without encryption."""

import ast
from pathlib import Path

import pytest

from torch_impl import data as torch_data

ROOT = Path(__file__).parent.parent
PACKAGES = ("recipe", "torch_impl", "jax_impl", "lockstep", "export", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "ssl"}
BUILTINS = {"eval", "exec", "compile", "__import__", "input"}
FORBIDDEN_CALLS = BUILTINS | {"os.system", "os.popen", "torch.load", "torch.save"}


def find_faults(source: str) -> list[str]:
    """Everything in a source that is forbidden."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names) | ast.ImportFrom(names=names):
                modules = {name.name.split(".")[0] for name in names}
                if isinstance(node, ast.ImportFrom):
                    modules.add((node.module or "").split(".")[0])
                faults += sorted(modules & FORBIDDEN_MODULES)
            case ast.Call(func, _, keywords):
                name = ast.unparse(func)
                arguments = {word.arg: ast.unparse(word.value) for word in keywords}
                if name in FORBIDDEN_CALLS:
                    faults.append(name)
                if name in ("np.load", "np.save", "numpy.load") and arguments.get("allow_pickle") != "False":
                    faults.append(f"{name} that may pickle")
                if arguments.get("shell") == "True":
                    faults.append("a shell")
                if name.endswith("load_external_data_for_model"):
                    faults.append(name)
            case ast.Constant(str(text)) if text.startswith(("http:", "ftp:")):
                faults.append(text)
    return faults


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_has_nothing_forbidden(path):
    assert find_faults(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.memory",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
        "URL = 'http://example.org'",
    ],
)
def test_what_is_forbidden_is_noticed(source):
    assert find_faults(source)


def test_downloads_are_encrypted_and_from_one_place():
    from jax_impl import data as jax_data

    assert torch_data.URL.startswith("https://")
    assert jax_data.URL.startswith("https://")
