"""The arrays in what a model returns or takes, by where they are."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


def labelled(value: Any, is_array: Callable[[Any], bool], label: str = "") -> dict[str, Any]:
    """Arrays within tuples, lists, mappings and dataclasses, by labels such as ``[0]`` or ``['logits']``."""
    if is_array(value):
        return {label: value}
    if isinstance(value, Mapping):
        items: Any = [(repr(key), part) for key, part in value.items()]
    elif hasattr(value, "_fields"):  # a named tuple
        items = [(repr(name), getattr(value, name)) for name in value._fields]
    elif isinstance(value, tuple | list):
        items = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [(repr(field.name), getattr(value, field.name)) for field in dataclasses.fields(value)]
    else:
        return {}
    found: dict[str, Any] = {}
    for key, part in items:
        found |= labelled(part, is_array, f"{label}[{key}]")
    return found
