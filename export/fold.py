"""Rewrite a trained network into fewer operations that compute the same function.

At inference batch norm is a fixed scale and shift per channel, and so is the normalisation of the image: an
`Affine`. The rewrites below move each one into a neighbouring convolution. All are identities of real
arithmetic, carried out in float64; what they change is the rounding of the float32 result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from recipe.checkpoint import Tensors
from recipe.networks import Average, Conv, Dropout, MaxPool, Network, Norm, Relu
from recipe.warp import MEAN, STD

BN_EPSILON = 1e-5  # as in torch_impl.model and jax_impl.model; verification would notice a difference


@dataclass(frozen=True, eq=False)
class Affine:
    """x -> scale x + shift, per channel; both float64 (C,)."""

    name: str
    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False)
class Convolution:
    """Convolution with stride 1 and zero padding on all four sides."""

    name: str
    weight: np.ndarray  # float64 OIHW, square kernels
    bias: np.ndarray  # float64 (O,)
    pad: int
    side: int  # height and width of its input


@dataclass(frozen=True)
class Plain:
    """An operation without tensors."""

    name: str
    operation: Relu | MaxPool | Average


Step = Affine | Convolution | Plain


def steps_of(network: Network, tensors: Tensors) -> list[Step]:
    """The network in evaluation mode, operation by operation, behind the normalisation of an image in 0..1.

    Args:
        network: its layer table.
        tensors: parameters and statistics by canonical name, see `recipe.checkpoint.Checkpoint.model`.
    """
    values = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    steps: list[Step] = [Affine("normalise", np.array([1 / STD]), np.array([-MEAN / STD]))]
    for layer in network.layers:
        name = layer.name
        match layer.operation:
            case Conv(channels, _, pad, bias):
                shift = values[f"{name}.bias"] if bias else np.zeros(channels)
                steps.append(Convolution(name, values[f"{name}.weight"], shift, pad, layer.in_shape[1]))
            case Norm():
                scale = values[f"{name}.weight"] / np.sqrt(values[f"{name}.running_var"] + BN_EPSILON)
                shift = values[f"{name}.bias"] - values[f"{name}.running_mean"] * scale
                steps.append(Affine(name, scale, shift))
            case Dropout():
                pass  # the identity in evaluation mode
            case Relu() | MaxPool() | Average() as operation:
                steps.append(Plain(name, operation))
    return steps


def fold(steps: Sequence[Step], merge: bool = True, merge_average: bool = False) -> list[Step]:
    """Apply the rewrites until none applies.

    Args:
        steps: from `steps_of`.
        merge: also merge two convolutions with nothing between them, where that takes fewer multiplications.
        merge_average: also merge a convolution and the global average behind it. By default not: the average
            evens out the rounding of its terms, without it the logits' error was three times as large.
    """
    folded = list(steps)
    while True:
        for index, (first, second) in enumerate(pairwise(folded)):
            pair = _fold_pair(first, second)
            if pair is None and merge:
                pair = _merge_convolutions(first, second)
            if pair is None and merge_average:
                pair = _merge_average(first, second)
            if pair is not None:
                folded[index : index + 2] = pair
                break
        else:
            return folded


def _fold_pair(first: Step, second: Step) -> list[Step] | None:
    """The same two steps with the affine one gone or moved on; None where there is nothing to do."""
    match first, second:
        case Affine(), Affine():
            shift = second.scale * first.shift + second.shift
            return [Affine(second.name, second.scale * first.scale, shift)]
        case Convolution(), Affine():
            weight = first.weight * second.scale[:, None, None, None]
            return [replace(first, weight=weight, bias=first.bias * second.scale + second.shift)]
        case Affine(), Convolution(pad=0):
            bias = second.bias + np.einsum("oihw,i->o", second.weight, first.shift)
            return [replace(second, weight=second.weight * first.scale[None, :, None, None], bias=bias)]
        case Affine(), Convolution():
            return _fold_before_padding(first, second)
        case Affine(), Plain(operation=MaxPool()):
            return _fold_before_maximum(first, second)
        case Affine(), Plain(operation=Average()):
            return [second, first]
    return None


def _fold_before_padding(affine: Affine, convolution: Convolution) -> list[Step] | None:
    """Padding is zeros *behind* the affine, so only the scale moves: s x + t = s (x + t / s)."""
    if np.all(affine.scale == 1) or not np.all(affine.scale):
        return None
    weight = convolution.weight * affine.scale[None, :, None, None]
    rest = Affine(affine.name, np.ones_like(affine.scale), affine.shift / affine.scale)
    kept: list[Step] = [rest] if np.any(rest.shift) else []
    return [*kept, replace(convolution, weight=weight)]


def _fold_before_maximum(affine: Affine, pool: Plain) -> list[Step] | None:
    """A maximum commutes with what does not decrease; of a negative scale the sign has to stay before it."""
    if np.all(affine.scale >= 0):
        return [pool, affine]
    sign = np.where(affine.scale < 0, -1.0, 1.0)
    if np.array_equal(sign, affine.scale) and not np.any(affine.shift):
        return None
    bare = Affine(affine.name, sign, np.zeros_like(sign))
    return [bare, pool, replace(affine, scale=np.abs(affine.scale))]


def _merge_convolutions(first: Step, second: Step) -> list[Step] | None:
    """One convolution in place of two, if it multiplies less often.

    The second may not pad: its zeros stand where a merged one would see the first's response to zeros.
    """
    if not isinstance(first, Convolution) or not isinstance(second, Convolution) or second.pad:
        return None
    merged = _compose(first, second)
    less = multiplications(merged) < multiplications(first) + multiplications(second)
    return [merged] if less else None


def _merge_average(first: Step, second: Step) -> list[Step] | None:
    """One convolution as large as its input, in place of one without padding and its output's average."""
    match first, second:
        case Convolution(pad=0), Plain(operation=Average()):
            merged = _compose(first, _averaging(first))
            return [merged] if multiplications(merged) < multiplications(first) else None
    return None


def _averaging(convolution: Convolution) -> Convolution:
    """The global average behind a convolution, itself as a convolution with a diagonal kernel."""
    side, channels = out_side(convolution), len(convolution.weight)
    weight = np.eye(channels)[:, :, None, None] * np.full((side, side), 1 / side**2)
    return Convolution(convolution.name, weight, np.zeros(channels), 0, side)


def _compose(first: Convolution, second: Convolution) -> Convolution:
    """second(first(x)) as one convolution; the second must have no padding."""
    inner, outer = first.weight.shape[-1], second.weight.shape[-1]
    side = inner + outer - 1
    weight = np.zeros((len(second.weight), first.weight.shape[1], side, side))
    for row in range(outer):
        for column in range(outer):
            tap = np.einsum("om,mihw->oihw", second.weight[:, :, row, column], first.weight)
            weight[:, :, row : row + inner, column : column + inner] += tap
    bias = second.bias + np.einsum("omhw,m->o", second.weight, first.bias)
    return Convolution(first.name, weight, bias, first.pad, first.side)


def out_side(convolution: Convolution) -> int:
    """Height and width of a convolution's output."""
    return convolution.side + 2 * convolution.pad - convolution.weight.shape[-1] + 1


def multiplications(convolution: Convolution) -> int:
    """Multiplications for one image."""
    return convolution.weight.size * out_side(convolution) ** 2
