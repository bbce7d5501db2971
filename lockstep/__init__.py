"""The proof: training runs in PyTorch and Flax side by side, and any two models layer by layer."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`compare` is imported where it is used first: it needs both frameworks."""
    if name == "compare":
        from lockstep.models import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
