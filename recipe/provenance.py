"""Where a result comes from: command, commit, versions and machine."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def provenance(packages: Iterable[str]) -> dict[str, Any]:
    """Command, commit, date, and the versions of Python and of those packages that are installed."""
    return {
        "command": command(),
        "commit": git_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | installed_versions(packages),
    }


def command() -> str:
    """The command line of this process as a person types it, with paths relative to the working folder."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return shlex.join(["python", *program, *(_relative(argument) for argument in sys.argv[1:])])


def _relative(argument: str) -> str:
    """A path of this machine becomes relative to the working folder, or its name where it lies elsewhere."""
    if not argument.startswith("/"):
        return argument
    path = Path(argument)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """The commit of the checkout this file is in, with ``+`` where its code has changes; None without git.

    What earlier measurements added to ``results/`` is no change.
    """
    status = ["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results"]
    commit, changes = _git("rev-parse", "HEAD"), _git(*status)
    return commit and commit + ("+" if changes else "")


def _git(*arguments: str) -> str | None:
    """What a git command says about the checkout this file is in; None if it fails."""
    return _output_of("git", "-C", str(Path(__file__).parent), *arguments)


def _output_of(*words: str) -> str | None:
    """What a program prints; None if it is missing, fails or takes more than ten seconds."""
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def describe_machine() -> dict[str, Any]:
    """Processor, cores this process may use, instruction set, GPU and system."""
    return {
        "processor": processor_name(),
        "cores": count_cores(),
        "instructions": _instructions(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def count_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor's name, as Linux gives it, or the architecture."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> str:
    """The widest vector or matrix instructions: the speed of a convolution depends on them."""
    flags = (_cpuinfo("flags") or "").split()
    known = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
    return next((name for flag, name in known.items() if flag in flags), "")


def _cpuinfo(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def _gpu() -> str | None:
    """The GPUs that the NVIDIA driver names; None without a driver."""
    names = _output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return ", ".join(names.splitlines()) if names else None
