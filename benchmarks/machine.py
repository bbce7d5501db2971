"""What a result must say about where it was measured."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from recipe.files import write_atomically
from recipe.run import git_commit

PACKAGES = ("torch", "torchvision", "jax", "jaxlib", "flax", "optax", "numpy", "onnx", "onnxruntime")


def describe_machine() -> dict[str, Any]:
    """Command, commit, date, processor, GPU, cores and versions, for a result file."""
    import torch

    return {
        "command": shlex.join(["python", "-m", *_module_and_arguments()]),
        "commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def write_result(path: Path, found: dict[str, Any]) -> None:
    """Write a result file: what was found, and where it was.

    Raises:
        UserError: it cannot be written.
    """
    write_atomically(path, (json.dumps(found | describe_machine(), indent=1) + "\n").encode())


def save_part(path: Path, name: str, found: dict[str, Any]) -> None:
    """Put one part into a result file, where the others stay: what takes an hour may be measured in turns."""
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    write_atomically(path, (json.dumps(result | {name: found}, indent=1) + "\n").encode())


def processor_name() -> str:
    """The processor's name, as Linux gives it, or the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _module_and_arguments() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name
    return [module, *sys.argv[1:]]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
