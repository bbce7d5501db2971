"""Training steps: both optimizers on the same gradients, and the setting in which they differ.

After equal outputs and gradients only the optimizers can differ. So the port's gets the reference's gradients
by the binding of the weights: no other rounding is in the way, and the port's model need not run again.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lockstep.errors import UserError
from lockstep.result import Difference, Place
from lockstep.trace import Leaf, Model, Trace
from lockstep.values import NEAR

FEW = 8  # leaves that decide about a cause
NOISE = 4e-16  # of a weight: two roundings
EPSILON = 1e-6  # that torch.nn.utils.clip_grad_norm_ adds to the norm
Settings = dict[str, Any]  # of a parameter group


@dataclass
class Step:
    """What one training step used and made; arrays are as `Trace.weights`.

    Attributes:
        gradients: as the backward pass left them; NaN: none.
        used: as the optimizer took them, after clipping.
        weights: after the step.
        groups: settings of each parameter group, of PyTorch.
        members: index of the group by the leaf's name.
        rule: the optimizer's class.
    """

    gradients: np.ndarray
    used: np.ndarray
    weights: np.ndarray
    groups: list[Settings]
    members: dict[str, int]
    rule: str


# --- the optimizers ---


class Stepper:
    """An optimizer with weights of its own, in float64, which are `Trace.weights` of one side."""

    def __init__(self, model: Any, trace: Trace, weights: np.ndarray, optimizer: Any):
        """Make it; ``weights`` is not changed.

        Raises:
            UserError: ``optimizer`` is none, or one of other parameters.
        """
        self.trace, self.weights = trace, weights.copy()
        self.leaves = [leaf for leaf in trace.leaves if leaf.trainable]
        make = _of_torch if model.framework == "PyTorch" else _of_optax
        self.step: Callable[[np.ndarray], Step] = make(self, model, optimizer)

    def part(self, leaf: Leaf, numbers: np.ndarray) -> np.ndarray:
        """The numbers of a leaf in its shape."""
        return numbers[leaf.start : leaf.stop].reshape(leaf.shape)


def _of_torch(stepper: Stepper, model: Any, given: Any) -> Callable[[np.ndarray], Step]:
    import torch

    schedulers = torch.optim.lr_scheduler.LRScheduler
    fixed = isinstance(given, torch.optim.Optimizer | schedulers)
    module, made = copy.deepcopy((model.original, given if fixed else None))
    module.double()
    try:
        made = made if fixed else given(module.parameters())
    except Exception as error:
        raise UserError(
            f"the PyTorch optimizer cannot be made of the parameters: {_reason(error)}"
        ) from error
    scheduler = made if isinstance(made, schedulers) else None
    optimizer: Any = scheduler.optimizer if scheduler else made
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            "the PyTorch optimizer must be an optimizer, a scheduler or a function from parameters to one, "
            f"not {type(made).__name__}"
        )
    tensors = dict(module.named_parameters())
    names = {id(tensor): name for name, tensor in tensors.items()}
    groups = optimizer.param_groups
    if any(id(tensor) not in names for group in groups for tensor in group["params"]):
        raise UserError("the PyTorch optimizer has parameters that are not the model's")
    members = {names[id(tensor)]: index for index, group in enumerate(groups) for tensor in group["params"]}
    with torch.no_grad():
        for leaf in stepper.leaves:
            tensors[leaf.name].copy_(torch.from_numpy(stepper.part(leaf, stepper.weights)))

    def step(gradients: np.ndarray) -> Step:
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        used = gradients.copy()
        for leaf in stepper.leaves:
            gradient = stepper.part(leaf, gradients)
            tensors[leaf.name].grad = None if np.isnan(gradient).any() else torch.from_numpy(gradient.copy())
        try:
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        except TypeError as error:  # LBFGS wants a closure, ReduceLROnPlateau a loss
            raise UserError(f"the PyTorch optimizer cannot take a step alone: {_reason(error)}") from error
        for leaf in stepper.leaves:
            tensor = tensors[leaf.name]
            stepper.part(leaf, stepper.weights)[...] = tensor.detach().numpy()
            if tensor.grad is not None:
                stepper.part(leaf, used)[...] = tensor.grad.numpy()
        return Step(gradients, used, stepper.weights.copy(), settings, members, type(optimizer).__name__)

    return step


def _of_optax(stepper: Stepper, model: Any, transform: Any) -> Callable[[np.ndarray], Step]:
    import jax
    import jax.numpy as jnp
    import optax

    if not hasattr(transform, "init") or not hasattr(transform, "update"):
        raise UserError(
            f"the JAX optimizer must be an Optax transformation, not a {type(transform).__name__}"
        )
    by_name = {leaf.name: leaf for leaf in stepper.leaves}
    order = [by_name.get(name) for name in model.adapter.names]
    tree = model.adapter.parameters(list(range(len(order))))

    def fill(numbers: np.ndarray) -> Any:
        return jax.tree.map(
            lambda i: jnp.asarray(stepper.part(order[i], numbers)) if order[i] else None, tree
        )

    def widen(x: Any) -> Any:  # a schedule has the precision of its count
        return jnp.asarray(x, np.int64) if jnp.issubdtype(jnp.result_type(x), np.integer) else x

    with jax.enable_x64(True):
        params = fill(stepper.weights)
        memory = jax.tree.map(widen, transform.init(params))

    def step(gradients: np.ndarray) -> Step:
        nonlocal params, memory
        try:
            with jax.enable_x64(True):
                updates, memory = transform.update(fill(np.nan_to_num(gradients)), memory, params)
                params = optax.apply_updates(params, updates)
        except TypeError as error:  # some transformations want the loss
            raise UserError(f"the Optax transformation cannot take a step alone: {_reason(error)}") from error
        for i, x in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True):
            stepper.part(order[i], stepper.weights)[...] = np.asarray(x)
        return Step(gradients, gradients, stepper.weights.copy(), [], {}, "Optax")

    return step


def reference_steps(
    model: Model, trace: Trace, optimizer: Any, cotangents: Mapping[str, np.ndarray], steps: int
) -> Iterator[Step]:
    """The reference's own training steps; those of a recorded trace as they were."""
    recorded: list[Step] | None = getattr(model, "steps", None)
    if recorded is not None:
        if len(recorded) < steps:
            raise UserError(f"{len(recorded)} training steps were recorded; record with --steps {steps}")
        yield from recorded[:steps]
        return
    stepper = Stepper(model, trace, trace.weights, optimizer)
    for _ in range(steps):
        yield stepper.step(np.real(model.gradients(stepper.weights, cotangents).weights))


# --- the comparison ---


def compare_steps(
    reference: Model,
    port: Model,
    traces: tuple[Trace, Trace],
    optimizers: tuple[Any, Any],
    cotangents: Mapping[str, np.ndarray],
    steps: int,
) -> Difference | None:
    """Take training steps with both optimizers and compare the parameters after each.

    Args:
        reference: the reference.
        port: a live model.
        traces: of both; the port's has the binding.
        optimizers: of PyTorch an optimizer, a scheduler or a function from parameters to one; of JAX an Optax
            transformation.
        cotangents: of the reference's outputs, where it has no loss.
        steps: how many.

    Returns:
        The first parameter that differs, with the cause if one setting explains every number.

    Raises:
        UserError: an optimizer that is none, has other parameters, or cannot take a step alone.
    """
    theirs, mine = traces
    assert mine.binding is not None
    numbers = mine.binding.numbers
    stepper = Stepper(port, mine, mine.weights, optimizers[1])
    watched = [leaf for leaf in stepper.leaves if (numbers[leaf.start : leaf.stop] >= 0).all()]
    start = np.real(theirs.weights)
    history: list[tuple[Step, np.ndarray]] = []
    found, size = None, 0.0
    for count, step in enumerate(
        reference_steps(reference, theirs, optimizers[0], cotangents, steps), start=1
    ):
        bound = np.where(numbers >= 0, np.nan_to_num(step.gradients)[numbers], 0.0)
        history.append((step, stepper.step(bound).weights))
        for leaf in () if found else watched:
            ids = numbers[leaf.start : leaf.stop]
            want, moved = step.weights[ids], np.abs(step.weights[ids] - start[ids]).max(initial=0.0)
            far = np.abs(stepper.weights[leaf.start : leaf.stop] - want).max(initial=0.0)
            if far > NEAR * moved + NOISE * count * np.abs(want).max(initial=0.0):
                found, size = (count, leaf, theirs.leaf(int(ids.flat[0]))), far / moved if moved else np.inf
                break
    if found is None:
        return None
    count, leaf, other = found
    far = (
        f"by {size:.1e} of how far it moved" if np.isfinite(size) else "though the reference's does not move"
    )
    return Difference(
        "parameter",
        f"after step {count} of {steps} {leaf.name} differs {far}; all before it was equal",
        Place(history[0][0].rule, other.name, other.shape),
        Place("Optax" if port.framework == "JAX" else port.framework, leaf.name, leaf.shape),
        cause=explain(theirs, watched, numbers, history),
    )


# --- the cause ---


@dataclass(frozen=True)
class Rule:
    """The update of SGD, Adam or RMSprop, with what implementations disagree about."""

    kind: str
    rates: tuple[float, ...]
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    inside: float = 0.0  # epsilon within the root
    decay: float = 0.0
    decoupled: bool = False
    decay_vectors: bool = True  # biases and scales too
    corrected: bool = True
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    clip: float = np.inf  # of the gradients' joint norm
    clip_epsilon: float = 0.0

    def run(
        self, start: np.ndarray, gradients: Sequence[np.ndarray], norms: Sequence[float]
    ) -> list[np.ndarray]:
        """The parameter after each step; ``norms`` are those of all gradients together."""
        p, m, v, found = start, np.zeros_like(start), np.zeros_like(start), []
        decay = self.decay if self.decay_vectors or start.ndim > 1 else 0.0
        for t, (g, norm, rate) in enumerate(zip(gradients, norms, self.rates, strict=True), start=1):
            g = g * min(1.0, self.clip / (norm + self.clip_epsilon))
            g = g if self.decoupled else g + decay * p
            if self.kind == "SGD":
                m = g if t == 1 and not self.dampening else self.momentum * m + (1 - self.dampening) * g
                update = g + self.momentum * m if self.nesterov else m
            elif self.kind == "RMSprop":
                v = self.betas[1] * v + (1 - self.betas[1]) * g * g
                m = self.momentum * m + g / (np.sqrt(v + self.inside) + self.epsilon)
                update = m
            else:
                a, b = self.betas
                m, v = a * m + (1 - a) * g, b * v + (1 - b) * g * g
                m_hat = m / (1 - a**t) if self.corrected else m
                v_hat = v / (1 - b**t) if self.corrected else v
                if self.nesterov:
                    m_hat = a * m / (1 - a ** (t + 1)) + (1 - a) * g / (1 - a**t)
                update = m_hat / (np.sqrt(v_hat + self.inside) + self.epsilon)
            p = p - rate * (update + decay * p if self.decoupled else update)
            found.append(p)
        return found


@dataclass(frozen=True)
class Sample:
    """One leaf of the reference with both sides' courses."""

    name: str
    start: np.ndarray
    gradients: list[np.ndarray]
    reference: list[np.ndarray]  # after each step
    port: list[np.ndarray]

    def fits(self, course: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
        """Whether a rule makes a course."""
        moved = max(np.abs(p - self.start).max() for p in wanted)
        noise = NOISE * len(wanted) * np.abs(self.start).max()
        return max(np.abs(a - b).max() for a, b in zip(course, wanted, strict=True)) <= NEAR * moved + noise


def explain(
    trace: Trace, watched: Sequence[Leaf], numbers: np.ndarray, history: Sequence[tuple[Step, np.ndarray]]
) -> str:
    """The setting of the reference's rule that makes the port's every step; empty if none does."""
    steps = [step for step, _ in history]
    samples, rules = [], []
    norms = [float(np.sqrt(np.nansum(step.gradients**2))) for step in steps]
    clips = [float(np.sqrt(np.nansum(step.used**2))) for step in steps]
    for leaf in sorted(watched, key=lambda leaf: len(leaf.shape) < 2):
        ids = numbers[leaf.start : leaf.stop].reshape(leaf.shape)
        name = trace.leaf(int(ids.flat[0])).name
        groups = [step.groups[step.members[name]] for step in steps if name in step.members]
        if len(groups) < len(steps) or np.isnan(steps[0].gradients[ids]).any():
            continue
        port = [weights[leaf.start : leaf.stop].reshape(leaf.shape) for _, weights in history]
        gradients, reference = [step.gradients[ids] for step in steps], [step.weights[ids] for step in steps]
        sample = Sample(name, np.real(trace.weights)[ids], gradients, reference, port)
        rule = _rule(steps[0].rule, groups, norms, clips)
        if rule is None or not sample.fits(rule.run(sample.start, gradients, norms), reference):
            return ""  # another rule than it seems
        samples.append(sample)
        rules.append(rule)
    keep = [*range(min(len(samples), FEW)), *range(max(FEW, len(samples) - FEW), len(samples))]
    samples, rules = [samples[i] for i in keep], [rules[i] for i in keep]

    def fit(change: Mapping[str, Any]) -> bool:
        return all(
            sample.fits(replace(rule, **change).run(sample.start, sample.gradients, norms), sample.port)
            for sample, rule in zip(samples, rules, strict=True)
        )

    if not samples:
        return ""
    changes = _candidates(rules[0], set(rules))
    table = [
        (words, change)
        for words, change in changes
        if any(getattr(rule, key) != value for key, value in change.items() for rule in rules)
    ]
    found = list(dict.fromkeys(words for words, change in table if fit(change)))
    found += _rates(samples, rules, norms)
    if found:  # SGD's clipped gradient and its learning rate, for one, cannot be told apart
        return "; or ".join(found[:2])
    for (words, change), (more, other) in itertools.combinations(table, 2):
        if not change.keys() & other.keys() and fit({**change, **other}):
            return f"{words}; {more}"
    return ""


def _rule(name: str, groups: list[Settings], norms: Sequence[float], clips: Sequence[float]) -> Rule | None:
    """The reference's rule for one leaf, by its group's settings in each step."""
    kinds = {"SGD": "SGD", "Adam": "Adam", "AdamW": "Adam", "NAdam": "", "RMSprop": "RMSprop"}
    first = groups[0]
    unknown = first.get("amsgrad") or first.get("maximize") or first.get("centered")
    if not kinds.get(name) or unknown:
        return None
    clipped = [
        clip * (1 + EPSILON / norm)
        for norm, clip in zip(norms, clips, strict=True)
        if clip < norm * (1 - 1e-12)
    ]
    alpha: Any = first.get("alpha", 0.99)
    return Rule(
        kinds[name],
        tuple(float(group["lr"]) for group in groups),
        first.get("betas", (0.9, alpha)),  # pyright: ignore  # a pair
        first.get("eps", 0.0),
        decay=first.get("weight_decay", 0.0),
        decoupled=name == "AdamW" or bool(first.get("decoupled_weight_decay")),
        momentum=first.get("momentum", 0.0),
        dampening=first.get("dampening", 0.0),
        nesterov=bool(first.get("nesterov")),
        clip=float(f"{clipped[0]:.9g}") if clipped else np.inf,
        clip_epsilon=EPSILON if clipped else 0.0,
    )


def _rates(samples: Sequence[Sample], rules: Sequence[Rule], norms: Sequence[float]) -> list[str]:
    """The port's learning rates in words, if nothing else differs."""
    found = []
    for sample, rule in zip(samples, rules, strict=True):
        rates: list[float] = []
        for t in range(len(norms)):
            before = sample.port[t - 1] if t else sample.start
            trial = replace(rule, rates=(*rates, 1.0))
            unit = trial.run(sample.start, sample.gradients[: t + 1], norms[: t + 1])[t] - before
            rates.append(float(((sample.port[t] - before) * unit).sum() / max((unit * unit).sum(), 1e-300)))
        rule = replace(rule, rates=tuple(rates))
        if not sample.fits(rule.run(sample.start, sample.gradients, norms), sample.port):
            return []
        found.append(np.array(rates))
    mine, theirs = np.array(found), np.array([rule.rates for rule in rules])
    alike = [np.allclose(mine[:, 1:], theirs[:, :-1], 1e-6), np.allclose(mine[:, :-1], theirs[:, 1:], 1e-6)]
    varies = np.ptp(theirs, axis=1).any() and mine.shape[1] > 1
    if varies and alike[0]:
        return ["the port's schedule is one step behind"]
    if varies and alike[1]:
        return ["the port's schedule is one step ahead: PyTorch steps its scheduler after the optimizer"]
    if varies and np.allclose(mine, mine[:, :1], 1e-6):
        return ["the port's learning rate does not follow the schedule"]
    both = ["; ".join(dict.fromkeys(map(_listed, rates))) for rates in (mine, theirs)]
    return [f"the port's learning rate is {both[0]}, the reference's {both[1]}"] if both[0] != both[1] else []


def _listed(rates: Sequence[float]) -> str:
    """Rates of successive steps, the first three of them."""
    text = [f"{rate:.4g}" for rate in rates]
    return text[0] if len(set(text)) == 1 else f"({', '.join(text[:3])}{', ...' if len(text) > 3 else ''})"


def _candidates(base: Rule, rules: set[Rule]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the port may have instead, in words and as a change of the rule."""
    if base.kind == "SGD" and base.momentum:  # the same numbers as another learning rate, but likelier
        words = "the port averages the gradients (optax.ema, factor 1 - momentum), the reference sums them"
        yield words, {"dampening": base.momentum}
    own = sorted({rule.decay for rule in rules})
    for decay in dict.fromkeys((0.0, 1e-4, 1e-2, 5e-4, 1e-3, 0.05, 0.1, *own)):
        known = " (optax.adamw's default is 1e-4, PyTorch's AdamW's is 1e-2)" if decay == 1e-4 else ""
        there = " and ".join(f"{value:g}" for value in own) + (", by group" if len(own) > 1 else "")
        yield f"the port's weight decay is {decay:g}, the reference's {there}{known}", {"decay": decay}
    how = ("coupled: added to the gradient", "decoupled: taken from the weights")
    words = f"the port's weight decay is {how[not base.decoupled]}; the reference's is {how[base.decoupled]}"
    yield words, {"decoupled": not base.decoupled}
    yield "the port's weight decay leaves out biases and scales", {"decay_vectors": False}
    for limit in dict.fromkeys((1.0, 0.5, 0.1, 5.0, 10.0, *(base.clip * k for k in (2, 0.5, 10, 0.1)))):
        there = f"at {base.clip:g}" if np.isfinite(base.clip) else "not at all"
        words = f"the port clips the gradients' norm at {limit:g}, the reference {there}"
        yield words, {"clip": limit, "clip_epsilon": 0.0}
        yield words, {"clip": limit, "clip_epsilon": EPSILON}
    yield f"the port does not clip the gradients' norm, the reference at {base.clip:g}", {"clip": np.inf}
    words = "the port clips by norm (optax.clip_by_global_norm), the reference by norm + epsilon 1e-06"
    yield words, {"clip_epsilon": 0.0}
    uses = "the port uses Nesterov's momentum, the reference does not"
    lacks = "the port does not use Nesterov's momentum, the reference does"
    yield lacks if base.nesterov else uses, {"nesterov": not base.nesterov}
    if base.kind != "SGD":
        for epsilon in (1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-10, 1e-12, 0.0):
            yield f"the port's epsilon is {epsilon:g}, the reference's {base.epsilon:g}", {"epsilon": epsilon}
        for epsilon in dict.fromkeys((base.epsilon, 1e-8, 1e-6, 1e-5)):
            words = (
                f"the port adds epsilon {epsilon:g} inside the root, the reference {base.epsilon:g} outside"
            )
            yield words, {"inside": epsilon, "epsilon": 0.0}
            yield f"the port adds {epsilon:g} inside the root (eps_root) too", {"inside": epsilon}
        for beta in (0.9, 0.95, 0.98, 0.99, 0.999):
            name = "decay" if base.kind == "RMSprop" else "b2"
            yield (
                f"the port's {name} is {beta:g}, the reference's {base.betas[1]:g}",
                {"betas": (base.betas[0], beta)},
            )
            yield (
                f"the port's b1 is {beta:g}, the reference's {base.betas[0]:g}",
                {"betas": (beta, base.betas[1])},
            )
        yield "the port's moments have no bias correction", {"corrected": False}
    for momentum in (0.0, 0.8, 0.9, 0.95, 0.99, round(1 - base.momentum, 6)):
        if base.kind != "Adam":
            yield (
                f"the port's momentum is {momentum:g}, the reference's {base.momentum:g}",
                {"momentum": momentum},
            )
    if base.kind == "SGD":
        yield "the reference dampens the momentum, the port does not", {"dampening": 0.0}


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
