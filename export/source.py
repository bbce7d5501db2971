"""What the framework that trained a checkpoint says of images: the truth a file is verified against."""

from typing import Literal

import numpy as np

from recipe.checkpoint import Checkpoint, Tensors
from recipe.errors import UserError
from recipe.warp import MEAN, STD

BATCH = 1000

Precision = Literal["float32", "float64"]


def source_logits(
    checkpoint: Checkpoint, images: np.ndarray, precision: Precision, framework: str | None = None
) -> np.ndarray:
    """Logits of the checkpoint's model on the CPU.

    Args:
        checkpoint: averaged weights where it has any.
        images: float32 (N, 1, 28, 28) in 0..1.
        precision: of the arithmetic. float64 leaves no rounding to speak of.
        framework: "torch" or "jax"; by default the one that trained it.

    Returns:
        (N, 10) in that precision.

    Raises:
        UserError: the checkpoint names another framework.
    """
    framework = framework or checkpoint.config["framework"]
    if framework not in ("torch", "jax"):
        raise UserError(f"the checkpoint is of the unknown framework {framework!r}; expected torch or jax")
    tensors = {name: tensor.astype(precision) for name, tensor in checkpoint.model.items()}
    logits = _torch_logits if framework == "torch" else _jax_logits
    return logits(checkpoint, tensors, images, precision)


def _torch_logits(
    checkpoint: Checkpoint, tensors: Tensors, images: np.ndarray, precision: Precision
) -> np.ndarray:
    import torch

    from torch_impl.model import ConvNet, load_tensors

    model = ConvNet(checkpoint.network, dropout=0.0).to(getattr(torch, precision)).eval()
    load_tensors(model, tensors)
    with torch.inference_mode():
        batches = torch.from_numpy(images.astype(precision, copy=False)).split(BATCH)
        return torch.cat([model((batch - MEAN) / STD) for batch in batches]).numpy()


def _jax_logits(
    checkpoint: Checkpoint, tensors: Tensors, images: np.ndarray, precision: Precision
) -> np.ndarray:
    import jax
    import jax.numpy as jnp

    from export.flax_export import flax_model

    with jax.enable_x64(precision == "float64"), jax.default_device(jax.devices("cpu")[0]):
        model = flax_model(checkpoint.network, tensors)
        predict = jax.jit(lambda batch: model((jnp.transpose(batch, (0, 2, 3, 1)) - MEAN) / STD))
        padded = np.resize(
            images.astype(precision, copy=False), (-(-len(images) // BATCH) * BATCH, 1, 28, 28)
        )
        batches = [
            np.asarray(predict(padded[start : start + BATCH])) for start in range(0, len(padded), BATCH)
        ]
    return np.concatenate(batches)[: len(images)]
