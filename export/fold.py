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
from recipe.data import MEAN, STD
from recipe.networks import Average, AvgPool, Conv, Dropout, MaxPool, Network, Norm, Relu


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
    depthwise: bool = False  # each channel by itself: the weight is O1HW


@dataclass(frozen=True)
class Plain:
    """An operation without tensors."""

    name: str
    operation: Relu | MaxPool | AvgPool | Average


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
            case Conv(channels, _, pad, bias, _, depthwise):
                weight = values[f"{layer.owner}.weight"]
                shift = values[f"{layer.owner}.bias"] if bias else np.zeros(channels)
                steps.append(Convolution(name, weight, shift, pad, layer.in_shape[1], depthwise))
            case Norm(epsilon):
                scale = values[f"{name}.weight"] / np.sqrt(values[f"{name}.running_var"] + epsilon)
                shift = values[f"{name}.bias"] - values[f"{name}.running_mean"] * scale
                steps.append(Affine(name, scale, shift))
            case Dropout():
                pass  # the identity in evaluation mode
            case Relu() | MaxPool() | AvgPool() | Average() as operation:
                steps.append(Plain(name, operation))
    return steps


def fold(steps: Sequence[Step]) -> list[Step]:
    """Apply the rewrites to steps from `steps_of` until none applies."""
    folded = list(steps)
    while True:
        for index, (first, second) in enumerate(pairwise(folded)):
            if (rewritten := _rewrite(first, second)) is not None:
                folded[index : index + 2] = rewritten
                break
        else:
            return folded


def _rewrite(first: Step, second: Step) -> list[Step] | None:
    """Steps that compute the same, with an affine removed or moved on; None if no rewrite applies."""
    match first, second:
        case Affine(), Affine():
            shift = second.scale * first.shift + second.shift
            return [Affine(second.name, second.scale * first.scale, shift)]
        case Convolution(), Affine():
            weight = first.weight * second.scale[:, None, None, None]
            return [replace(first, weight=weight, bias=first.bias * second.scale + second.shift)]
        case Affine(), Convolution(pad=0):
            answer = (second.weight * _per_input(second, first.shift)).sum((1, 2, 3))
            weight = second.weight * _per_input(second, first.scale)
            return [replace(second, weight=weight, bias=second.bias + answer)]
        case Affine(), Convolution():
            return _fold_before_padding(first, second)
        case Affine(), Plain(operation=MaxPool()):
            return _fold_before_maximum(first, second)
        case Affine(), Plain(operation=AvgPool() | Average()):
            return [second, first]
        case Convolution(), Convolution(pad=0):
            return _merge_convolutions(first, second)
    return None


def _per_input(convolution: Convolution, values: np.ndarray) -> np.ndarray:
    """One value per input channel in the shape in which it meets the weight."""
    return values[:, None, None, None] if convolution.depthwise else values[None, :, None, None]


def _fold_before_padding(affine: Affine, convolution: Convolution) -> list[Step] | None:
    """The padding adds zeros *after* the affine, so only the scale moves: s x + t = s (x + t / s)."""
    if np.all(affine.scale == 1) or not np.all(affine.scale):
        return None
    weight = convolution.weight * _per_input(convolution, affine.scale)
    rest = Affine(affine.name, np.ones_like(affine.scale), affine.shift / affine.scale)
    kept: list[Step] = [rest] if np.any(rest.shift) else []
    return [*kept, replace(convolution, weight=weight)]


def _fold_before_maximum(affine: Affine, pool: Plain) -> list[Step] | None:
    """A maximum commutes with an affine that does not decrease. A negative sign must stay before it."""
    if np.all(affine.scale >= 0):
        return [pool, affine]
    sign = np.where(affine.scale < 0, -1.0, 1.0)
    if np.array_equal(sign, affine.scale) and not np.any(affine.shift):
        return None
    bare = Affine(affine.name, sign, np.zeros_like(sign))
    return [bare, pool, replace(affine, scale=np.abs(affine.scale))]


def _merge_convolutions(first: Convolution, second: Convolution) -> list[Step] | None:
    """One convolution in place of two, if it multiplies less often.

    The second must not pad: it sees zeros at the border, a merged one the first's response to zeros. A
    depthwise one would lose what it saves.
    """
    if first.depthwise or second.depthwise:
        return None
    merged = _compose(first, second)
    fewer = multiplications(merged) < multiplications(first) + multiplications(second)
    return [merged] if fewer else None


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


def multiplications(convolution: Convolution) -> int:
    """Multiplications for one image."""
    out_side = convolution.side + 2 * convolution.pad - convolution.weight.shape[-1] + 1
    return convolution.weight.size * out_side**2
