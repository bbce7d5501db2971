"""Test-time averaging: the class by the mean probability over an image and its eight one-pixel shifts."""

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


def shifted_accuracy(
    framework: Framework, network: Network, recipe: Recipe, split: Split, tensors: Tensors, precision: str
) -> float:
    """Accuracy (0 to 1) on the validation images when each is judged by the mean over its shifts.

    Args:
        framework: that computes the logits.
        network: of the tensors.
        recipe: of the run; says whether averaged weights are the model.
        split: whose validation images to judge.
        tensors: a canonical state, see `recipe.checkpoint`.
        precision: of the run.
    """
    images = np.concatenate([shift_images(split.val_images, *shift) for shift in SHIFTS])
    shifted = split._replace(
        train_images=split.train_images[:1],  # the trainer wants some
        train_labels=split.train_labels[:1],
        val_images=images,
        val_labels=np.tile(split.val_labels, len(SHIFTS)),
    )
    trainer = framework.trainer(network, recipe, shifted, "auto", precision)
    trainer.load(tensors)
    logits = trainer.predict().reshape(len(SHIFTS), len(split.val_labels), -1)
    return float((softmax(logits, axis=-1).mean(0).argmax(1) == split.val_labels).mean())
