"""Test-time augmentation: a validation image is judged together with its eight one-pixel shifts."""

from itertools import product

import numpy as np
from scipy.special import softmax

from recipe.checkpoint import Tensors
from recipe.data import Split
from recipe.networks import Network
from recipe.recipes import Recipe
from recipe.run import Framework

SHIFTS = tuple(product((-1, 0, 1), repeat=2))  # pixels down and to the right


def shift_images(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Images (N, H, W) shifted by at most one pixel in each direction; the border is filled with black."""
    height, width = images.shape[1:]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def shift_validation(split: Split) -> Split:
    """A split with the validation images in the first shift, then in the second, and so on."""
    return split._replace(
        train_images=split.train_images[:1],  # a trainer copies them to its device and does not use them
        train_labels=split.train_labels[:1],
        val_images=np.concatenate([shift_images(split.val_images, *shift) for shift in SHIFTS]),
        val_labels=np.tile(split.val_labels, len(SHIFTS)),
    )


def averaged_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy (0 to 1) by the class probabilities averaged over the shifts.

    Args:
        logits: of the images of `shift_validation`, (shifts x N, 10).
        labels: of the unshifted images, (N,).
    """
    probabilities = softmax(logits.reshape(len(SHIFTS), len(labels), -1), axis=-1)
    return float((probabilities.mean(0).argmax(-1) == labels).mean())


def tta_accuracy(
    framework: Framework, network: Network, recipe: Recipe, split: Split, tensors: Tensors, device: str
) -> float:
    """Accuracy (0 to 1) of a trained float32 network on the validation images with test-time augmentation.

    Args:
        framework: computes the logits.
        network: the network of the tensors.
        recipe: decides whether the averaged weights are the model.
        split: its validation images are judged.
        tensors: a trainer's state, by canonical name.
        device: auto, cpu or cuda.
    """
    trainer = framework.trainer(network, recipe, shift_validation(split), device, "float32")
    trainer.load(tensors)
    return averaged_accuracy(trainer.predict(), split.val_labels)
