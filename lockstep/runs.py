"""Train side by side and compare after every step: losses, gradients and every tensor of the state.

One comparison is between the two frameworks. Two more, the noise floor, are between a framework and itself,
started from weights moved by one unit in the last place: only rounding makes those runs differ, so no port
can be expected to come closer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from recipe.checkpoint import Tensors, initial_tensors
from recipe.networks import Network
from recipe.plan import make_plans
from recipe.recipes import Precision, Recipe
from recipe.run import Trainer

KINDS = ("gradient", "parameter", "momentum", "statistic", "average")
PAIRS = {"torch_jax": (0, 1), "torch_torch": (0, 2), "jax_jax": (1, 3)}  # positions among the trainers
LOSS_BOUND, TENSOR_BOUND = 1e-10, 1e-9  # of float64, absolute and relative to the norm: docs/lockstep.md
NOISE_FACTOR = 10  # of float32: how many times the noise floor two frameworks may be apart
SETTLED = 20  # steps after which float32 runs are as far apart as they get; before, all are still together


@dataclass
class Comparison:
    """Differences between two trainers over all steps so far."""

    loss: list[float] = field(default_factory=list)  # |difference| at each step
    largest: dict[str, tuple[float, str]] = field(default_factory=dict)  # by kind: see `largest_differences`
    predictions: int = 0  # validation images that the two classify differently at the end
    unequal: list[int] = field(default_factory=list)  # numbers of the state that differ after each step

    def add_step(self, loss: float, tensors: Tensors, reference: Tensors) -> None:
        """Add the loss difference and the tensors of one step."""
        self.loss.append(abs(loss))
        self.unequal.append(count_unequal(tensors, reference))
        for kind, difference in largest_differences(tensors, reference).items():
            self.largest[kind] = max(difference, self.largest.get(kind, difference))


def relative_difference(tensor: np.ndarray, reference: np.ndarray) -> float:
    """Norm of the difference divided by the norm of the reference.

    It is 0 if both are all zeros, and infinite if only the reference is, or if a number is not finite.
    """
    reference = reference.astype(np.float64).ravel()
    difference = np.linalg.norm(tensor.astype(np.float64).ravel() - reference)
    size = np.linalg.norm(reference)
    if not np.isfinite(difference) or not size:
        return np.inf if difference else 0.0
    return float(difference / size)


def kind_of(name: str) -> str:
    """The kind, one of `KINDS`, of a tensor by its canonical name."""
    if "/" in name:
        return name.split("/")[0]
    return "statistic" if "running" in name else "parameter"


def largest_differences(tensors: Tensors, reference: Tensors) -> dict[str, tuple[float, str]]:
    """For each kind of tensor the largest relative difference and the name of that tensor."""
    largest: dict[str, tuple[float, str]] = {}
    for name in tensors.keys() | reference.keys():
        difference = relative_difference(tensors[name], reference[name]), name
        largest[kind_of(name)] = max(difference, largest.get(kind_of(name), difference))
    return largest


def count_unequal(tensors: Tensors, reference: Tensors) -> int:
    """How many numbers of the state differ; gradients are no part of the state."""
    names = (name for name in tensors if kind_of(name) != "gradient")
    return sum(int((tensors[name] != reference[name]).sum()) for name in names)


def add_gradients(tensors: Tensors, before: Tensors, momentum: float) -> Tensors:
    """The state after a step, with the gradient of that step (weight decay included) as ``gradient/NAME``.

    SGD sets momentum <- momentum x decay + gradient, so the two states of the momentum give the gradient.
    """
    gradients = {
        name.replace("momentum/", "gradient/"): tensor - momentum * before[name]
        for name, tensor in tensors.items()
        if name.startswith("momentum/")
    }
    return tensors | gradients


def nudge(tensors: Tensors) -> Tensors:
    """Move every weight by one unit in the last place; statistics, momentum and averages stay."""
    return {
        name: np.nextafter(tensor, np.inf, dtype=tensor.dtype) if kind_of(name) == "parameter" else tensor
        for name, tensor in tensors.items()
    }


def turn_everything_on(recipe: Recipe) -> Recipe:
    """The recipe with dropout and augmentation turned on where it lacks them."""
    ranges = {"rotation": 9.0, "shift": 1.5, "scale": 0.07, "shear": 3.0}
    return replace(recipe, dropout=recipe.dropout or 0.05, **({} if recipe.augments else ranges))


def run_lockstep(
    trainers: Sequence[Trainer],
    network: Network,
    recipe: Recipe,
    images: int,
    steps: int,
    *,
    seed: int = 0,
    precision: Precision = "float64",
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[np.ndarray, dict[str, Comparison]]:
    """Train side by side, one step at a time, from the same initial weights and by the same plan.

    Args:
        trainers: one of PyTorch, one of Flax; for the noise floor a second of each, which starts nudged.
        network: as the trainers have it.
        recipe: as the trainers have it.
        images: the size of their training set.
        steps: how many of the recipe's schedule.
        seed: of every draw.
        precision: as the trainers have it.
        advance: called with 1 after each step.

    Returns:
        The losses, float64 (trainers, steps), and a comparison for each of `PAIRS` that was trained.
    """
    start = initial_tensors(network, recipe, seed, precision)
    for index, trainer in enumerate(trainers):
        trainer.load(start if index < 2 else nudge(start))
    comparisons = {pair: Comparison() for pair, both in PAIRS.items() if max(both) < len(trainers)}
    states = [trainer.tensors() for trainer in trainers]
    losses = []
    for plan in make_plans(network, recipe, seed, images, 0, steps):
        for step in range(plan.steps):
            one = plan.part(step, step + 1)
            loss = np.array([trainer.train(one, lambda _: None)[0] for trainer in trainers])
            losses.append(loss)
            before, states = states, [trainer.tensors() for trainer in trainers]
            observed = [add_gradients(*each, recipe.momentum) for each in zip(states, before, strict=True)]
            for pair, comparison in comparisons.items():
                a, b = PAIRS[pair]
                comparison.add_step(float(loss[a, 0] - loss[b, 0]), observed[a], observed[b])
            advance(1)
    classes = [trainer.predict().argmax(1) for trainer in trainers]
    for pair, comparison in comparisons.items():
        a, b = PAIRS[pair]
        comparison.predictions = int((classes[a] != classes[b]).sum())
    return np.concatenate(losses, axis=1), comparisons


def summarise(comparisons: dict[str, Comparison]) -> dict[str, Any]:
    """The comparisons' numbers in one flat dict, each under ``PAIR_NAME``.

    ``loss`` is the largest difference over all steps, ``loss_rms`` the root mean square from step `SETTLED`
    on, each of `KINDS` the largest relative difference of a tensor, ``unequal`` the largest number of unequal
    numbers in the state, ``predictions`` a count.
    """
    numbers: dict[str, Any] = {}
    for pair, comparison in comparisons.items():
        loss = np.array(comparison.loss)
        late = loss[SETTLED:] if len(loss) > SETTLED else loss
        numbers[f"{pair}_loss"] = float(loss.max())
        numbers[f"{pair}_loss_rms"] = float(np.sqrt((late**2).mean()))
        numbers |= {f"{pair}_{kind}": difference for kind, (difference, _) in comparison.largest.items()}
        numbers[f"{pair}_unequal"] = max(comparison.unequal)
        numbers[f"{pair}_predictions"] = comparison.predictions
    return numbers


def verdict(row: dict[str, Any], comparison: Comparison) -> str:
    """Whether the two frameworks took the same run, by the bounds of the run's precision, in one line.

    Args:
        row: what `summarise` returns, with the run's ``precision``, ``steps`` and ``state_numbers``.
        comparison: of PyTorch with Flax.
    """
    steps, loss = f"all {row['steps']:,} steps", np.array(comparison.loss)
    if row["precision"] == "bitwise":
        if not any(comparison.unequal):
            return f"same run: the state is the same, bit for bit, after each of {row['steps']:,} steps"
        step = 1 + int(np.flatnonzero(comparison.unequal)[0])
        count = comparison.unequal[step - 1]
        return f"not the same run: after step {step}, {count:,} of {row['state_numbers']:,} numbers differ"
    if row["precision"] == "float64":
        if not loss.max() <= LOSS_BOUND:
            step = 1 + int(np.flatnonzero(~(loss <= LOSS_BOUND))[0])
            apart = f"by {loss[step - 1]:.1e}, bound {LOSS_BOUND:g}"
            return f"not the same run: the losses part at step {step}, {apart}"
        difference, name = max(comparison.largest.values())
        if not difference <= TENSOR_BOUND:
            return f"not the same run: {name} differs by {difference:.1e} of its norm, bound {TENSOR_BOUND:g}"
        return (
            f"same run: all losses within {loss.max():.1e}, bound {LOSS_BOUND:g}, "
            f"all tensors within {difference:.1e}, bound {TENSOR_BOUND:g}"
        )
    parted = np.flatnonzero(loss > np.finfo(np.float32).eps * 10)
    start = f"the losses part at step {1 + parted[0]}" if len(parted) else f"the losses agree over {steps}"
    floors = [row[key] for pair in ("torch_torch", "jax_jax") if (key := f"{pair}_loss_rms") in row]
    if not floors:
        return f"float32: {start}; rounding does that too, so judge by float64 or by the noise floor"
    ratio = row["torch_jax_loss_rms"] / max(floors) if max(floors) else 0.0
    what = "as rounding does" if ratio <= NOISE_FACTOR else "more than rounding does"
    return f"float32: {start}, {what}: {ratio:.1f} times the noise floor, bound {NOISE_FACTOR}"


def largest_tensor_difference(numbers: dict[str, Any], pair: str = "torch_jax") -> float:
    """The largest relative difference of any tensor, of whatever kind, in what `summarise` returns."""
    return max(numbers[key] for kind in KINDS if (key := f"{pair}_{kind}") in numbers)
