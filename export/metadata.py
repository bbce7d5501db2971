"""What a file says about itself: ONNX's standard keys, and where the model comes from."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import onnx
from onnx import helper

from recipe.checkpoint import Checkpoint, Tensors
from recipe.data import MEAN, STD
from recipe.networks import CLASSES

LICENSE = "MIT"


def weights_sha256(tensors: Tensors) -> str:
    """SHA-256 over name, shape and float32 bytes of a model's canonical tensors, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
        digest.update(f"{name} {tensor.shape};".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def describe(checkpoint: Checkpoint, precision: str) -> dict[str, str]:
    """The metadata that follows from a checkpoint; see models/README.md for what each key means.

    Holds no date and no path, so that the same checkpoint gives the same file.
    """
    config = checkpoint.config
    return {
        "model_author": "Lockstep",  # this and the next: onnx/docs/IR.md, optional metadata
        "model_license": LICENSE,
        "Image.BitmapPixelFormat": "Gray8",  # these two: onnx/docs/MetadataProps.md
        "Image.NominalPixelRange": "Normalized_0_1",
        "labels": json.dumps([str(digit) for digit in range(CLASSES)]),
        "mean": str(MEAN),
        "std": str(STD),
        "network": checkpoint.network.name,
        "parameters": str(checkpoint.network.parameter_count),
        "recipe": json.dumps(asdict(config.recipe), sort_keys=True),
        "seed": str(config.seed),
        "step": str(checkpoint.step),
        "averaged_weights": json.dumps(config.recipe.ema_decay is not None),
        "dataset": config.data.name,
        "dataset_sha256": config.data.fingerprint,
        "framework": config.framework,
        "framework_versions": json.dumps(config.versions, sort_keys=True),
        "training_commit": str(config.commit),
        "weights_sha256": weights_sha256(checkpoint.model),
        "precision": precision,
    }


def set_metadata(model: onnx.ModelProto, properties: dict[str, str]) -> None:
    """Give a model its producer and properties, in place of any it has."""
    model.producer_name, model.producer_version = "lockstep-mnist", version("lockstep-mnist")
    model.model_version = 1
    model.doc_string = (
        f"Handwritten digits: {model.graph.name}. Input image: float32 (batch, 1, 28, 28), white digit on "
        "black, 0 to 1. Outputs: logits and probabilities, float32 (batch, 10), of the digits 0 to 9."
    )
    del model.metadata_props[:]
    helper.set_model_props(model, properties)


def get_metadata(model: onnx.ModelProto) -> dict[str, str]:
    """A model's properties."""
    return {entry.key: entry.value for entry in model.metadata_props}
