"""Validation images judged together with their eight one-pixel shifts."""

from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, softmax

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


class ShiftedScores(NamedTuple):
    """What a model makes of the validation images and their shifts."""

    averaged: float  # accuracy (0 to 1) by the mean probability over an image's shifts
    each: float  # accuracy of the shifts, each by itself: less noisy than that of the images alone
    loss: float  # mean cross entropy of the shifts


def shift_validation(split: Split) -> Split:
    """A split to validate on: all validation images in one shift, then all in the next, and so on."""
    return split._replace(
        train_images=split.train_images[:1],  # a trainer wants some
        train_labels=split.train_labels[:1],
        val_images=np.concatenate([shift_images(split.val_images, *shift) for shift in SHIFTS]),
        val_labels=np.tile(split.val_labels, len(SHIFTS)),
    )


def score_logits(logits: np.ndarray, labels: np.ndarray) -> ShiftedScores:
    """Scores of the logits (shifts x N, 10) of `shift_validation`'s images, given the N labels."""
    logits = logits.astype(np.float64).reshape(len(SHIFTS), len(labels), -1)
    right = np.take_along_axis(log_softmax(logits, axis=-1), labels[None, :, None].astype(int), axis=-1)
    return ShiftedScores(
        averaged=float((softmax(logits, axis=-1).mean(0).argmax(-1) == labels).mean()),
        each=float((logits.argmax(-1) == labels).mean()),
        loss=float(-right.mean()),
    )


def score_shifts(
    framework: Framework, network: Network, recipe: Recipe, split: Split, tensors: Tensors, precision: str
) -> ShiftedScores:
    """Scores of a canonical state on the validation images and their shifts.

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
    return score_logits(trainer.predict(), split.val_labels)
