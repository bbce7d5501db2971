"""A second, independent way to ONNX: Flax's own module through jax2onnx.

Nothing of `export.fold` and `export.build` is used, so the two files can check each other.
"""

import logging

import onnx

from export.build import INPUT, LOGITS, OPSET, PROBABILITIES
from jax_impl.model import ConvNet, load_tensors
from recipe.checkpoint import Checkpoint, Tensors
from recipe.errors import UserError
from recipe.networks import IMAGE_SHAPE, Network
from recipe.warp import MEAN, STD


def flax_model(network: Network, tensors: Tensors) -> ConvNet:
    """The network as a Flax module with these canonical parameters and statistics."""
    from flax import nnx

    graphdef, state = nnx.split(ConvNet(network, dropout=0.0))
    return nnx.merge(graphdef, load_tensors(state, tensors, [*network.parameters, *network.buffers]))


def build_model_with_jax2onnx(checkpoint: Checkpoint) -> onnx.ModelProto:
    """The Flax module as jax2onnx exports it, with the same inputs and outputs as `export.build.build_model`.

    Raises:
        UserError: jax2onnx is not installed or cannot convert the module.
    """
    import jax
    import jax.numpy as jnp

    try:
        from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports] (an optional extra)
    except ImportError:
        raise UserError("--via jax2onnx needs the package jax2onnx: pip install '.[jax2onnx]'") from None
    network = checkpoint.network
    tensors = {name: tensor.astype("float32") for name, tensor in checkpoint.model.items()}
    model = flax_model(network, tensors)

    def predict(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model((jnp.transpose(image, (0, 2, 3, 1)) - MEAN) / STD)
        return logits, jax.nn.softmax(logits)

    # It warns of shapes of constants that it leaves out, which strict shape inference then finds by itself.
    logging.getLogger("onnx_ir.serde").setLevel(logging.ERROR)
    try:
        exported = to_onnx(
            predict,
            [("batch", *IMAGE_SHAPE)],
            model_name=network.name,
            opset=OPSET,
            input_names=[INPUT],
            output_names=[LOGITS, PROBABILITIES],
        )
    except Exception as error:  # of any kind: it traces our code and converts primitive by primitive
        reason = " ".join(str(error).split())
        raise UserError(f"jax2onnx cannot convert the Flax module ({reason}); use --via table") from error
    assert isinstance(exported, onnx.ModelProto)
    return exported
