"""A second way to each verdict, without lockstep: plain outputs in float32, as they are and with one change.

The port has the weights that its own library converted.
"""

from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.census.transformers_pairs import BATCH, TOKENS
from recipe.console import explain

EQUAL = 5e-6  # of the largest number: float32's rounding in a few layers
NO_TYPES = {"token_type_ids": np.zeros((BATCH, TOKENS), np.int64)}

UNPADDED = {"attention_mask": np.ones((BATCH, TOKENS), np.int64)}


def _as_flax_unet(model: Any) -> None:
    from torch.nn.functional import gelu

    for part in model.modules():
        if type(part).__name__ == "Transformer2DModel":
            part.norm.eps = 1e-5
        elif type(part).__name__ == "GEGLU":
            part.gelu = lambda gate: gelu(gate, approximate="tanh")


def _as_jimm_clip(model: Any) -> None:
    for layer in model.text_model.encoder.layers:
        layer.layer_norm1.eps = layer.layer_norm2.eps = 1e-6


def _exact_gelu(model: Any) -> None:
    from torch import nn

    for layer in (*model.text_model.encoder.layers, *model.vision_model.encoder.layers):
        layer.mlp.activation_fn = nn.GELU()


# Of a pair that differs: the cause, the reference's settings or the inputs that make the outputs equal.
CHANGES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(
        ("electra", "electra_pretraining", "electra_mlm", "electra_cls"),
        ("Flax takes token type 1 where none is given, PyTorch 0", {}, NO_TYPES),
    ),
    "roformer_mlm": ("Flax ignores embedding_size", {"embedding_size": 24}, {}),
    "llama_theta": ("Flax ignores rope_theta", {"rope_theta": 10_000.0}, {}),
    "llama_scaled": ("Flax ignores rope_scaling", {"rope_scaling": None}, {}),
    "mistral_theta": ("Flax ignores rope_theta", {"rope_theta": 10_000.0}, {}),
    "mistral_no_window": (
        "Flax lets a token see only itself without a window",
        {"sliding_window": 1},
        UNPADDED,
    ),
    "mistral_window": ("Flax's window is one token wider", {"sliding_window": 4}, {}),
    "gemma_gelu": (
        "Flax takes hidden_activation, which is unset, and PyTorch hidden_act",
        {"hidden_act": "gelu_pytorch_tanh"},
        {},
    ),
    "jimm_clip": (
        "jimm has epsilon 1e-6 in the text's layers, transformers 1e-5",
        {"edit": _as_jimm_clip},
        {},
    ),
    "jimm_siglip": ("jimm has exact GELU, transformers its tanh form", {"edit": _exact_gelu}, {}),
    **dict.fromkeys(
        ("unet", "unet_linear"),
        (
            "Flax has epsilon 1e-5 in Transformer2D's GroupNorm, PyTorch 1e-6; and GELU's tanh form in GEGLU",
            {"edit": _as_flax_unet},
            {},
        ),
    ),
}


def confirm(module: ModuleType, name: str, equal: bool | None) -> dict[str, Any]:
    """What a second way says.

    Returns:
        ``plain``: how far the outputs are apart, relative to the largest number; ``changed``: the same after
        the change in `CHANGES`; ``change`` in words; ``confirmed``: whether that agrees with the verdict.
    """
    words, settings, given = CHANGES.get(name, ("", {}, {}))
    found: dict[str, Any] = {"change": words, "changed": None, "plain": _apart(module, name, {}, {})}
    if words:
        found["changed"] = _apart(module, name, settings, given)
    before, after = (isinstance(found[key], float) and found[key] <= EQUAL for key in ("plain", "changed"))
    found["confirmed"] = before if equal else after and not before
    return found


def _apart(module: ModuleType, name: str, settings: dict[str, Any], given: dict[str, Any]) -> float | str:
    """The largest difference of the outputs that both have; the error if they cannot be had."""
    try:
        found, out = module.outputs(name, settings, given)
    except Exception as error:  # of the port's own code, or of its converter
        return explain(error)[:200]
    pairs = [(np.asarray(found[key]), np.asarray(out[key])) for key in found if key in out]
    numbers = [(a, b) for a, b in pairs if a.dtype.kind == "f" and a.size == b.size]
    return max(float(np.abs(a - _as(b, a)).max() / np.abs(a).max()) for a, b in numbers)


def _as(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """An image of the port, which may have its channels last, as the reference has it."""
    return b if b.shape == a.shape else np.moveaxis(b, -1, 1)
