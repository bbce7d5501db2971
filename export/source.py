"""Logits of the framework that trained a checkpoint: the reference a file is compared with."""

from typing import Literal

import numpy as np

from recipe.checkpoint import Checkpoint, Tensors
from recipe.console import UserError
from recipe.data import EVALUATION_BATCH, MEAN, STD
from recipe.networks import Network


def source_logits(
    checkpoint: Checkpoint, images: np.ndarray, precision: Literal["float32", "float64"]
) -> np.ndarray:
    """Logits of the checkpoint's model on the CPU, by the framework that trained it.

    Args:
        checkpoint: its averaged weights are used if it has any.
        images: float32 (N, 1, 28, 28) in 0..1.
        precision: of the arithmetic. In float64 the rounding error is negligible.

    Returns:
        (N, 10) in that precision.

    Raises:
        UserError: the checkpoint names another framework.
    """
    framework = checkpoint.config.framework
    if framework not in ("torch", "jax"):
        raise UserError(f"the checkpoint is of the unknown framework {framework!r}; expected torch or jax")
    tensors = {name: tensor.astype(precision) for name, tensor in checkpoint.model.items()}
    x = (images.astype(precision) - MEAN) / STD
    batches = np.split(x, range(EVALUATION_BATCH, len(x), EVALUATION_BATCH))
    return (_torch_logits if framework == "torch" else _jax_logits)(checkpoint.network, tensors, batches)


def _torch_logits(network: Network, tensors: Tensors, batches: list[np.ndarray]) -> np.ndarray:
    import torch

    from torch_impl.devices import select_devices
    from torch_impl.model import ConvNet, load_tensors

    model = ConvNet(network, 0.0, select_devices("cpu")).to(torch.from_numpy(batches[0]).dtype).eval()
    load_tensors(model, tensors)
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(batch)).numpy() for batch in batches])


def _jax_logits(network: Network, tensors: Tensors, batches: list[np.ndarray]) -> np.ndarray:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jax_impl.devices import select_devices
    from jax_impl.model import ConvNet, load_tensors

    with jax.enable_x64(batches[0].dtype == np.float64), jax.default_device(jax.devices("cpu")[0]):
        model = ConvNet(network, 0.0, select_devices("cpu"))
        model.eval()
        load_tensors(model, tensors)
        predict = nnx.jit(model)
        return np.concatenate([predict(jnp.asarray(batch.transpose(0, 2, 3, 1))) for batch in batches])
