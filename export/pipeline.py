"""From a checkpoint to a file's content and the proof that it is right."""

from dataclasses import dataclass

from export.build import build_model
from export.fold import fold, steps_of
from export.images import Images
from export.maps import add_feature_maps
from export.metadata import describe, set_metadata
from export.quantize import quantize
from export.source import source_logits
from export.verify import BATCHES, Verification, run_model, verify
from recipe.checkpoint import Checkpoint
from recipe.console import UserError


@dataclass(frozen=True)
class Export:
    """A file's content, and what was measured on it."""

    content: bytes
    verification: Verification
    accuracy: float | None  # on the test images, 0 to 1; None for random images


def export(checkpoint: Checkpoint, images: Images, int8: bool = False, feature_maps: bool = False) -> Export:
    """Build, describe and verify a file.

    Args:
        checkpoint: of either framework.
        images: to verify and, for int8, to calibrate with.
        int8: quantise; without ``feature_maps``.
        feature_maps: add what each layer computes as further outputs.

    Raises:
        UserError: it is not the same function as the checkpoint's model, or cannot be built.
    """
    network = checkpoint.network
    model = build_model(network, fold(steps_of(network, checkpoint.model)))
    if int8:
        if images.train is None:
            raise UserError(f"int8 is calibrated on training images and there are none: {images.note}")
        model = quantize(model, images.train)
    if feature_maps:
        add_feature_maps(model)
    properties = describe(checkpoint, "int8" if int8 else "float32")
    accuracy = images.accuracy(run_model(model.SerializeToString(), images.test, BATCHES[-1])[0])
    if accuracy is not None:
        properties["accuracy"] = f"{accuracy:.4f}"
        properties["accuracy_images"] = f"{len(images.test)} {images.name} test"
    set_metadata(model, properties)
    content = model.SerializeToString(deterministic=True)
    source64 = source_logits(checkpoint, images.test, "float64")
    source32 = source_logits(checkpoint, images.test, "float32")
    return Export(content, verify(content, images.test, source64, source32, int8), accuracy)
