"""What an installation without a framework can do."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.subprocess
FRAMEWORKS = ("torch", "jax", "flax", "optax", "equinox", "onnx", "recipe")


def test_import_takes_no_framework():
    code = f"import sys, lockstep; print([name for name in {FRAMEWORKS!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
