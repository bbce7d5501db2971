"""Any two models compared, operation by operation; and two training runs compared, step by step."""

from typing import Any


def __getattr__(name: str) -> Any:
    """What is imported where it is used first, so that ``import lockstep`` takes no framework."""
    if name == "compare":
        from lockstep.comparison import compare

        return compare
    if name in ("function", "linen"):
        from lockstep import adapters

        return getattr(adapters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
