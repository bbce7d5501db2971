"""Training steps: both optimizers on the same gradients, and the setting in which they differ.

After equal outputs and gradients only the optimizers can differ. So the port's gets the reference's gradients
by the binding of the weights: no other rounding is in the way, and the port's model need not run again.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lockstep.errors import UserError
from lockstep.result import Difference, Place
from lockstep.trace import Leaf, Model, Trace
from lockstep.values import NEAR

FEW = 8  # leaves that decide about a cause
NOISE = 4e-16  # of a weight: two roundings
EPSILON = 1e-6  # that torch.nn.utils.clip_grad_norm_ adds to the norm
RULES = {"SGD": "SGD", "Adam": "Adam", "AdamW": "Adam", "RMSprop": "RMSprop"}


@dataclass
class Step:
    """What one training step of the reference used and made; arrays are as `Trace.weights`.

    Attributes:
        gradients: as the backward pass left them; NaN: none.
        weights: after the step.
        clipped: the norm of the gradients as the optimizer took them.
        groups: settings of each parameter group, of PyTorch.
        members: index of the group by the leaf's name.
        rule: the optimizer's class.
    """

    gradients: np.ndarray
    weights: np.ndarray
    clipped: float = 0.0
    groups: list[dict[str, Any]] = field(default_factory=list)
    members: dict[str, int] = field(default_factory=dict)
    rule: str = "Optax"


Stepper = Callable[[np.ndarray], Step]  # takes a step with gradients, as `Trace.weights`


def make_stepper(model: Any, trace: Trace, optimizer: Any) -> Stepper:
    """An optimizer with the weights of a trace, in float64.

    Raises:
        UserError: ``optimizer`` is none, or has parameters that are not the model's.
    """
    weights = np.real(trace.weights).copy()
    parts = {
        leaf.name: weights[leaf.start : leaf.stop].reshape(leaf.shape)
        for leaf in trace.leaves
        if leaf.trainable
    }
    make = _make_torch if model.framework == "PyTorch" else _make_optax
    step = make(model, parts, optimizer)

    def take(gradients: np.ndarray) -> Step:
        given = {
            leaf.name: gradients[leaf.start : leaf.stop].reshape(leaf.shape)
            for leaf in trace.leaves
            if leaf.name in parts
        }
        try:
            return replace(step(given), gradients=gradients, weights=weights.copy())
        except TypeError as error:  # LBFGS wants a closure, ReduceLROnPlateau and some of Optax the loss
            reason = " ".join(str(error).split())
            raise UserError(
                f"the optimizer of {model.framework} cannot take a step alone: {reason}"
            ) from error

    return take


def _make_torch(
    model: Any, weights: dict[str, np.ndarray], given: Any
) -> Callable[[dict[str, np.ndarray]], Step]:
    import torch

    schedulers = torch.optim.lr_scheduler.LRScheduler
    fixed = isinstance(given, torch.optim.Optimizer | schedulers)
    module, made = copy.deepcopy((model.original, given if fixed else None))
    module.double()
    made = made if fixed else given(module.parameters()) if callable(given) else given
    scheduler = made if isinstance(made, schedulers) else None
    optimizer: Any = scheduler.optimizer if scheduler else made
    if not isinstance(optimizer, torch.optim.Optimizer):
        wanted = "an optimizer, a scheduler or a function from parameters to one"
        raise UserError(f"the PyTorch optimizer must be {wanted}, not {type(made).__name__}")
    tensors = dict(module.named_parameters())
    names, groups = {id(tensor): name for name, tensor in tensors.items()}, optimizer.param_groups
    if any(id(tensor) not in names for group in groups for tensor in group["params"]):
        raise UserError("the PyTorch optimizer has parameters that are not the model's")
    members = {names[id(tensor)]: i for i, group in enumerate(groups) for tensor in group["params"]}
    for name, numbers in weights.items():
        tensors[name].data = torch.from_numpy(numbers)  # the same memory

    def step(gradients: dict[str, np.ndarray]) -> Step:
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        for name, gradient in gradients.items():
            tensors[name].grad = None if np.isnan(gradient).any() else torch.from_numpy(gradient.copy())
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        squares = [float(t.grad.square().sum()) for t in tensors.values() if t.grad is not None]
        nothing = np.zeros(0)
        return Step(nothing, nothing, sum(squares) ** 0.5, settings, members, type(optimizer).__name__)

    return step


def _make_optax(
    model: Any, weights: dict[str, np.ndarray], given: Any
) -> Callable[[dict[str, np.ndarray]], Step]:
    import jax
    import jax.numpy as jnp
    import optax

    if not hasattr(given, "init") or not hasattr(given, "update"):
        raise UserError(f"the JAX optimizer must be an Optax transformation, not {type(given).__name__}")
    tree = model.adapter.parameters(list(model.adapter.names))

    def widen(x: Any) -> Any:  # a schedule has the precision of its count
        return jnp.asarray(x, np.int64) if jnp.issubdtype(jnp.result_type(x), np.integer) else x

    with jax.enable_x64(True):
        params = jax.tree.map(lambda name: jnp.array(weights[name]), tree)
        memory = jax.tree.map(widen, given.init(params))

    def step(gradients: dict[str, np.ndarray]) -> Step:
        nonlocal params, memory
        with jax.enable_x64(True):
            grads = jax.tree.map(lambda name: jnp.asarray(np.nan_to_num(gradients[name])), tree)
            updates, memory = given.update(grads, memory, params)
            params = optax.apply_updates(params, updates)
        for name, x in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True):
            weights[name][...] = np.asarray(x)
        return Step(np.zeros(0), np.zeros(0))

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
    take, weights = make_stepper(model, trace, optimizer), trace.weights
    for _ in range(steps):
        step = take(np.real(model.gradients(weights, cotangents).weights))
        weights = step.weights
        yield step


def compare_steps(
    reference: Model,
    port: Model,
    traces: tuple[Trace, Trace],
    optimizers: tuple[Any, Any],
    cotangents: Mapping[str, np.ndarray],
    steps: int,
) -> tuple[Difference | None, float]:
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
        The first parameter that differs, with the cause if one setting explains every number. And how far
        equal ones are apart, of how far they moved: beyond rounding to float64 it is rounding to float32, as
        of a schedule.

    Raises:
        UserError: an optimizer that is none, has other parameters, or cannot take a step alone.
    """
    theirs, mine = traces
    assert mine.binding is not None
    numbers, take = mine.binding.numbers, make_stepper(port, mine, optimizers[1])
    watched = [
        leaf for leaf in mine.leaves if leaf.trainable and (numbers[leaf.start : leaf.stop] >= 0).all()
    ]
    start = np.real(theirs.weights)
    history: list[tuple[Step, np.ndarray]] = []
    found: tuple[int, Leaf, float] | None = None
    apart = 0.0
    for count, step in enumerate(
        reference_steps(reference, theirs, optimizers[0], cotangents, steps), start=1
    ):
        weights = take(mine.binding.fill(np.nan_to_num(step.gradients), 0.0)).weights
        history.append((step, weights))
        for leaf in () if found else watched:
            ids = numbers[leaf.start : leaf.stop]
            want = step.weights[ids]
            far, moved = np.abs(weights[leaf.start : leaf.stop] - want).max(), np.abs(want - start[ids]).max()
            noise = NOISE * count * np.abs(want).max()
            if far > NEAR * moved + noise:
                found = count, leaf, far / (moved or np.inf)
                break
            apart = max(apart, float(far - noise) / (moved or np.inf))
    if found is None:
        return None, apart
    count, leaf, far = found
    other = theirs.leaf(int(numbers[leaf.start]))
    words = f"by {far:.1e} of how far it moved" if far else "though the reference's does not move"
    difference = Difference(
        "parameter",
        f"after step {count} of {steps} {leaf.name} differs {words}; before, all were equal",
        Place(history[0][0].rule, other.name, other.shape),
        Place("Optax" if port.framework == "JAX" else "optimizer", leaf.name, leaf.shape),
        cause=explain(theirs, watched, numbers, history),
    )
    return difference, apart


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
        (a, b), decay = self.betas, self.decay if self.decay_vectors or start.ndim > 1 else 0.0
        for t, (g, norm, rate) in enumerate(zip(gradients, norms, self.rates, strict=True), start=1):
            g = g * min(1.0, self.clip / (norm + self.clip_epsilon))
            g = g if self.decoupled else g + decay * p
            if self.kind == "SGD":
                m = g if t == 1 and not self.dampening else self.momentum * m + (1 - self.dampening) * g
                update = g + self.momentum * m if self.nesterov else m
            elif self.kind == "RMSprop":
                v = b * v + (1 - b) * g * g
                update = m = self.momentum * m + g / (np.sqrt(v + self.inside) + self.epsilon)
            else:
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
class Course:
    """One parameter over all steps, with the reference's rule for it."""

    rule: Rule
    start: np.ndarray
    gradients: list[np.ndarray]
    norms: list[float]
    reference: list[np.ndarray]  # after each step
    port: list[np.ndarray]

    def fits(self, wanted: Sequence[np.ndarray], **change: Any) -> bool:
        """Whether the rule, with a change, makes a course."""
        made = replace(self.rule, **change).run(self.start, self.gradients, self.norms)
        limit = NEAR * max(np.abs(p - self.start).max() for p in wanted)
        limit += NOISE * len(wanted) * np.abs(self.start).max()
        return max(np.abs(a - b).max() for a, b in zip(made, wanted, strict=True)) <= limit

    def port_rates(self) -> np.ndarray:
        """The learning rates with which the rule comes closest to the port, step by step."""
        rates: list[float] = []
        for t, after in enumerate(self.port):
            before = self.port[t - 1] if t else self.start
            rule = replace(self.rule, rates=(*rates, 1.0))
            unit = rule.run(self.start, self.gradients[: t + 1], self.norms[: t + 1])[t] - before
            rates.append(float(((after - before) * unit).sum() / max((unit * unit).sum(), 1e-300)))
        return np.array(rates)


def explain(
    trace: Trace, watched: Sequence[Leaf], numbers: np.ndarray, history: Sequence[tuple[Step, np.ndarray]]
) -> str:
    """The setting of the reference's rule that makes the port's every step; empty if none does."""
    courses = []
    norms = [float(np.sqrt(np.nansum(step.gradients**2))) for step, _ in history]
    for leaf in sorted(watched, key=lambda leaf: len(leaf.shape) < 2):
        ids = numbers[leaf.start : leaf.stop].reshape(leaf.shape)
        rule = _rule([step for step, _ in history], norms, trace.leaf(int(ids.flat[0])).name)
        gradients, reference = (
            [step.gradients[ids] for step, _ in history],
            [step.weights[ids] for step, _ in history],
        )
        if rule is None or np.isnan(gradients[0]).any():
            continue
        port = [weights[leaf.start : leaf.stop].reshape(leaf.shape) for _, weights in history]
        courses.append(Course(rule, np.real(trace.weights)[ids], gradients, norms, reference, port))
    courses = courses[:FEW] + courses[FEW:][-FEW:]
    if not courses or not all(course.fits(course.reference) for course in courses):
        return ""  # another rule than it seems

    def fit(change: Mapping[str, Any]) -> bool:
        return all(course.fits(course.port, **change) for course in courses)

    rules = [course.rule for course in courses]
    table = [
        (words, change)
        for words, change in _candidates(rules[0], sorted({rule.decay for rule in rules}))
        if any(getattr(rule, key) != value for key, value in change.items() for rule in rules)
    ]
    found = list(dict.fromkeys(words for words, change in table if fit(change))) + _rates(courses)
    if found:  # SGD's clipped gradient and its learning rate, for one, cannot be told apart
        return "; or ".join(found[:2])
    for (words, change), (more, other) in itertools.combinations(table, 2):
        if not change.keys() & other.keys() and fit({**change, **other}):
            return f"{words}; {more}"
    return ""


def _rule(steps: Sequence[Step], norms: Sequence[float], name: str) -> Rule | None:
    """The reference's rule for one leaf, by its group's settings in each step; None: not known."""
    groups = [step.groups[step.members[name]] for step in steps if name in step.members]
    if len(groups) < len(steps) or steps[0].rule not in RULES:
        return None
    first = groups[0]
    if any(first.get(key) for key in ("amsgrad", "maximize", "centered")):
        return None
    pairs = zip(norms, (step.clipped for step in steps), strict=True)
    limits = [clipped * (1 + EPSILON / norm) for norm, clipped in pairs if clipped < norm * (1 - 1e-12)]
    return Rule(
        RULES[steps[0].rule],
        tuple(float(group["lr"]) for group in groups),
        tuple(first.get("betas", (0.9, first.get("alpha", 0.99)))),  # pyright: ignore  # two
        first.get("eps", 0.0),
        decay=first.get("weight_decay", 0.0),
        decoupled=steps[0].rule == "AdamW" or bool(first.get("decoupled_weight_decay")),
        momentum=first.get("momentum", 0.0),
        dampening=first.get("dampening", 0.0),
        nesterov=bool(first.get("nesterov")),
        clip=float(f"{limits[0]:.9g}") if limits else np.inf,
        clip_epsilon=EPSILON if limits else 0.0,
    )


def _rates(courses: Sequence[Course]) -> list[str]:
    """The port's learning rates in words, if nothing else differs."""
    mine = np.array([course.port_rates() for course in courses])
    if not all(c.fits(c.port, rates=tuple(rates)) for c, rates in zip(courses, mine, strict=True)):
        return []
    theirs = np.array([course.rule.rates for course in courses])
    if np.ptp(theirs, axis=1).any() and mine.shape[1] > 1:
        if np.allclose(mine[:, 1:], theirs[:, :-1], 1e-6):
            return ["the port's schedule is one step behind"]
        if np.allclose(mine[:, :-1], theirs[:, 1:], 1e-6):
            return ["the port's schedule is one step ahead: PyTorch steps its scheduler after the optimizer"]
        if np.allclose(mine, mine[:, :1], 1e-6):
            return ["the port's learning rate does not follow the schedule"]
    both = ["; ".join(dict.fromkeys(map(_listed, rates))) for rates in (mine, theirs)]
    return [f"the port's learning rate is {both[0]}, the reference's {both[1]}"] if both[0] != both[1] else []


def _listed(rates: Sequence[float]) -> str:
    """Rates of successive steps, the first three of them."""
    text = [f"{rate:.4g}" for rate in rates]
    return text[0] if len(set(text)) == 1 else f"({', '.join(text[:3])}{', ...' if len(text) > 3 else ''})"


def _candidates(base: Rule, decays: list[float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the port may have instead, in words and as a change; ``decays`` are the reference's."""

    def other(
        name: str, field: str, values: Sequence[float], own: Any
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for value in dict.fromkeys(values):
            yield f"the port's {name} is {value:g}, the reference's {own}", {field: value}

    if base.kind == "SGD" and base.momentum:  # the same numbers as another learning rate, but likelier
        words = "the port averages the gradients (optax.ema, factor 1 - momentum), the reference sums them"
        yield words, {"dampening": base.momentum}
    own = " and ".join(f"{decay:g}" for decay in decays) + (", by group" if len(decays) > 1 else "")
    yield from other("weight decay", "decay", (0.0, 1e-4, 1e-2, 5e-4, 1e-3, 0.05, 0.1, *decays), own)
    how = ("coupled: added to the gradient", "decoupled: taken from the weights")
    words = f"the port's weight decay is {how[not base.decoupled]}; the reference's is {how[base.decoupled]}"
    yield words, {"decoupled": not base.decoupled}
    yield "the port's weight decay leaves out biases and scales", {"decay_vectors": False}
    limits = (1.0, 0.5, 0.1, 5.0, 10.0, *(base.clip * factor for factor in (2, 0.5, 10, 0.1)))
    there = f"at {base.clip:g}" if np.isfinite(base.clip) else "not at all"
    for limit, epsilon in itertools.product(dict.fromkeys(limits), (0.0, EPSILON)):
        words = f"the port clips the gradients' norm at {limit:g}, the reference {there}"
        yield words, {"clip": limit, "clip_epsilon": epsilon}
    yield f"the port does not clip the gradients' norm, the reference {there}", {"clip": np.inf}
    words = "the port clips by norm (optax.clip_by_global_norm), the reference by norm + epsilon 1e-06"
    yield words, {"clip_epsilon": 0.0}
    does, does_not = "uses Nesterov's momentum", "does not use Nesterov's momentum"
    words = (does_not, does) if base.nesterov else (does, does_not)
    yield f"the port {words[0]}, the reference {words[1]}", {"nesterov": not base.nesterov}
    if base.kind != "Adam":
        momenta = (0.0, 0.8, 0.9, 0.95, 0.99, round(1 - base.momentum, 6))
        yield from other("momentum", "momentum", momenta, f"{base.momentum:g}")
    if base.kind == "SGD":
        yield "the reference dampens the momentum, the port does not", {"dampening": 0.0}
        return
    epsilons = dict.fromkeys((base.epsilon, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-10, 1e-12, 0.0))
    yield from other("epsilon", "epsilon", tuple(epsilons), f"{base.epsilon:g}")
    for epsilon in epsilons:
        words = f"the port adds epsilon {epsilon:g} inside the root, the reference {base.epsilon:g} outside"
        yield words, {"inside": epsilon, "epsilon": 0.0}
        yield f"the port adds {epsilon:g} inside the root (eps_root) too", {"inside": epsilon}
    for beta in (0.9, 0.95, 0.98, 0.99, 0.999):
        name = "decay of squares" if base.kind == "RMSprop" else "b2"
        yield (
            f"the port's {name} is {beta:g}, the reference's {base.betas[1]:g}",
            {"betas": (base.betas[0], beta)},
        )
        yield (
            f"the port's b1 is {beta:g}, the reference's {base.betas[0]:g}",
            {"betas": (beta, base.betas[1])},
        )
    yield "the port's moments have no bias correction", {"corrected": False}
