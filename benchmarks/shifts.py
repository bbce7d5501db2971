"""Test-time averaging: validation images judged together with their eight one-pixel shifts."""

from itertools import product

import numpy as np
from scipy.special import softmax

from recipe.checkpoint import Tensors
from recipe.data import Split
from recipe.networks import Network
from recipe.recipes import Recipe
from recipe.run import Framework

SHIFTS = tuple(product((-1, 0, 1), repeat=2))


def shift_images(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Images (N, H, W) moved by at most one pixel; what moves in is black."""
    height, width = images.shape[1:]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def shift_validation(split: Split) -> Split:
    """A split to validate on: all validation images in one shift, then all in the next, and so on."""
    return split._replace(
        train_images=split.train_images[:1],  # a trainer wants some
        train_labels=split.train_labels[:1],
        val_images=np.concatenate([shift_images(split.val_images, *shift) for shift in SHIFTS]),
        val_labels=np.tile(split.val_labels, len(SHIFTS)),
    )


def averaged_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy (0 to 1) by the mean probability over an image's shifts.

    Args:
        logits: of `shift_validation`'s images, (shifts x N, 10).
        labels: of the images, (N,).
    """
    probabilities = softmax(logits.reshape(len(SHIFTS), len(labels), -1), axis=-1)
    return float((probabilities.mean(0).argmax(-1) == labels).mean())


def shifted_accuracy(
    framework: Framework, network: Network, recipe: Recipe, split: Split, tensors: Tensors, precision: str
) -> float:
    """`averaged_accuracy` of a canonical state on the validation images.

    Args:
        framework: that computes the logits.
        network: of the tensors.
        recipe: of the run; says whether averaged weights are the model.
        split: whose validation images to judge.
        tensors: a canonical state, see `recipe.checkpoint`.
        precision: of the run.
    """
    trainer = framework.trainer(network, recipe, shift_validation(split), "auto", precision)
    trainer.load(tensors)
    return averaged_accuracy(trainer.predict(), split.val_labels)
