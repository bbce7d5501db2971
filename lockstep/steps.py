"""Training steps of both models, compared after each, and the setting that explains a difference."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import jax
import numpy as np
import torch
from flax import nnx

from lockstep.layers import Layers
from lockstep.observe import SMALL, difference, largest
from lockstep.observe_flax import by_path
from lockstep.observe_torch import TorchSide, to_numpy
from lockstep.result import Row
from recipe.console import UserError, reason

RELATIVE = 1e-9  # what rounding may grow to in a few steps
MOMENTA = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "momentum_buffer"}  # Optax, PyTorch
KNOWN = ("SGD", "Adam", "AdamW")  # the optimizers that `Rule` describes
MAX_EXPLAINED = 8  # tensors on which an optimizer's settings are tried

Tensors = dict[Any, np.ndarray]


@dataclass
class Trace:
    """What PyTorch's training steps used."""

    start: Tensors
    gradients: list[Tensors] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # of each step and of the one after the last
    group: dict[str, Any] = field(default_factory=dict)
    optimizer: str = ""


def compare_steps(layers: Layers, torch_model: Any, optimizers: tuple[Any, Any], steps: int) -> Row:
    """Train both and compare parameters, momenta and statistics after every step.

    Args:
        layers: compared forward and backward, without a difference.
        torch_model: the model as it was given.
        optimizers: see `lockstep.models.compare`.
        steps: how many.

    Returns:
        A row that says at which step which tensor parts, or that none does.

    Raises:
        UserError: an optimizer that is none, or that has other parameters than the model's.
    """
    given, transform = optimizers
    side, optimizer, scheduler = _torch_optimizer(torch_model, given)
    if not hasattr(transform, "init") or not hasattr(transform, "update"):
        raise UserError(f"optimizers: Flax's must be an Optax transformation, not {type(transform).__name__}")
    table = [entry[1:] for entry in layers.parameters()]
    trace = Trace(_state(side), group=dict(optimizer.param_groups[0]), optimizer=type(optimizer).__name__)
    step_flax, state = _flax_stepper(layers, transform)
    row = Row(f"(steps 1 to {steps})", "(steps)", "optimizer", output=0.0)
    for step in range(1, steps + 1):
        record = side.run(
            layers.inputs.args, layers.inputs.kwargs, layers.losses and layers.losses[0], keep=False
        )
        trace.gradients.append(record.gradients)
        trace.rates.append(optimizer.param_groups[0]["lr"])
        try:
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        except TypeError as error:  # LBFGS wants a closure, ReduceLROnPlateau a loss
            raise UserError(f"optimizers: PyTorch's cannot take a step alone: {reason(error)}") from error
        if not row.what:  # after the first difference PyTorch goes on, so that causes can be told apart
            try:
                state = step_flax(state)
            except TypeError as error:  # some transformations want the loss
                raise UserError(f"optimizers: Optax's cannot take a step alone: {reason(error)}") from error
            far, what, name = _compare_states(table, side, optimizer, state)
            row.output = max(row.output or 0.0, far)
            if far > RELATIVE:
                row.what = what
                row.where = (
                    f"step {step}: {what} of {name} differs by {far:.1e}; everything was equal before it"
                )
    if row.what:
        trace.rates.append(optimizer.param_groups[0]["lr"])
        row.cause = explain_optimizer(trace, table, transform, layers)
    return row


def _torch_optimizer(model: Any, given: Any) -> tuple[TorchSide, Any, Any]:
    """A copy of the model and an optimizer of the copy, with its scheduler if there is one."""
    schedulers = torch.optim.lr_scheduler.LRScheduler
    if isinstance(given, torch.optim.Optimizer | schedulers):
        side = TorchSide(model, "float64", given)
        made = side.together
    elif callable(given):
        side = TorchSide(model, "float64")
        try:
            made = given(side.model.parameters())
        except Exception as error:
            raise UserError(
                f"optimizers: PyTorch's cannot be made of the model's parameters: {reason(error)}"
            ) from error
    else:
        made, side = given, None
    scheduler = made if isinstance(made, schedulers) else None
    optimizer = made.optimizer if isinstance(made, schedulers) else made
    if not isinstance(optimizer, torch.optim.Optimizer) or side is None:
        raise UserError(
            "optimizers: PyTorch's must be an optimizer, a scheduler or a function from parameters to one, "
            f"not {type(given).__name__}"
        )
    own = {id(parameter) for parameter in side.model.parameters()}
    if not all(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise UserError("optimizers: PyTorch's has parameters that are not the model's")
    return side, optimizer, scheduler


def _state(side: TorchSide) -> Tensors:
    return {name: to_numpy(tensor) for name, tensor in side.model.state_dict(keep_vars=True).items()}


def _flax_stepper(layers: Layers, transform: Any) -> tuple[Callable, tuple]:
    """A function from (parameters, other state, optimizer's state) to the next, and the first."""
    import optax

    inputs = layers.flax.to_arrays((layers.flax_inputs.args, layers.flax_inputs.kwargs))
    graph, params, rest = nnx.split(layers.flax.model, nnx.Param, ...)

    def loss(params: Any, rest: Any) -> Any:
        model = nnx.merge(graph, params, rest, copy=True)
        value = layers.objective(model(*inputs[0], **inputs[1]))
        return value, nnx.split(model, nnx.Param, ...)[2]

    def step(state: tuple) -> tuple:
        params, rest, memory = state
        (_, rest), gradients = jax.value_and_grad(loss, has_aux=True)(params, rest)
        updates, memory = transform.update(gradients, memory, params)
        return optax.apply_updates(params, updates), rest, memory

    return jax.jit(step), (params, rest, _start(transform, params))


def _start(transform: Any, params: Any) -> Any:
    """Optax's first state; its count is made 64 bits wide, from which schedules take their precision."""

    def widen(x: Any) -> Any:
        return x.astype(np.int64) if jax.numpy.issubdtype(jax.numpy.result_type(x), np.integer) else x

    return jax.tree.map(widen, transform.init(params))


def _compare_states(table: list, side: TorchSide, optimizer: Any, state: tuple) -> tuple[float, str, str]:
    """The first of momentum, parameter and statistic that differs, or the largest difference of all."""
    params, rest, memory = by_path(state[0]), by_path(state[1]), _momenta(state[2])
    theirs, worst = _state(side), (0.0, "parameter", "")
    named = dict(side.model.named_parameters())
    sizes = largest([float(np.linalg.norm(x)) for x in params.values()])
    found = []
    for field_name, flat in memory.items():
        kept = {n: optimizer.state.get(p, {}).get(MOMENTA[field_name]) for n, p in named.items()}
        size = largest([float(x.norm()) for x in kept.values() if x is not None])
        for name, names, path, _, gradient in table:
            if path in flat and len(names) == 1 and kept.get(names[0]) is not None:
                expected = gradient(to_numpy(kept[names[0]]))
                found.append(
                    (difference(flat[path], expected, SMALL * size), "momentum", f"{name} ({field_name})")
                )
    for name, names, path, to_flax, _ in table:
        if all(n in theirs for n in names):
            mine = params.get(path, rest.get(path))
            scale = 1e-2 * sizes if path in params else 0.0
            if mine is not None:
                far = difference(mine, to_flax(*(theirs[n] for n in names)), scale)
                found.append((far, "parameter" if path in params else "statistics", name))
    for far, what, name in found:
        if far > worst[0]:
            worst = (far, what, name)
        if far > RELATIVE:
            return far, what, name
    return worst


def _momenta(memory: Any) -> dict[str, Tensors]:
    """The momenta in a state of Optax, by name of the field and path of the parameter."""
    found: dict[str, Tensors] = {}
    leaves = jax.tree_util.tree_leaves_with_path(memory, is_leaf=lambda x: isinstance(x, nnx.State))
    for path, leaf in leaves:
        names = [key.name for key in path if hasattr(key, "name")]
        if isinstance(leaf, nnx.State) and names and names[-1] in MOMENTA:
            flat = {
                p: x for p, x in nnx.to_flat_state(leaf) if hasattr(x, "get_value") or hasattr(x, "shape")
            }
            found[names[-1]] = {
                p: np.asarray(x.get_value() if hasattr(x, "get_value") else x) for p, x in flat.items()
            }
    return found


# --- the likely cause --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """The update of SGD or of Adam, with what implementations disagree about."""

    adam: bool
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
    clip: float = 0.0  # of the gradients' joint norm

    def run(self, start: np.ndarray, gradients: list[np.ndarray], norms: list[float]) -> np.ndarray:
        """The parameter after the steps; ``norms`` are the joint norms of all gradients."""
        p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
        for t, (g, norm) in enumerate(zip(gradients, norms, strict=True), start=1):
            rate = self.rates[t - 1]
            if self.clip and norm > self.clip:
                g = g * self.clip / norm
            decay = self.decay if self.decay_vectors or p.ndim > 1 else 0.0
            if not self.decoupled:
                g = g + decay * p
            old = p
            if self.adam:
                m = self.betas[0] * m + (1 - self.betas[0]) * g
                v = self.betas[1] * v + (1 - self.betas[1]) * g * g
                m_hat = m / (1 - self.betas[0] ** t) if self.corrected else m
                v_hat = v / (1 - self.betas[1] ** t) if self.corrected else v
                if self.nesterov:
                    m_hat = self.betas[0] * m / (1 - self.betas[0] ** (t + 1)) + (1 - self.betas[0]) * g / (
                        1 - self.betas[0] ** t
                    )
                p = p - rate * m_hat / (np.sqrt(v_hat + self.inside) + self.epsilon)
            else:
                m = g if t == 1 and not self.dampening else self.momentum * m + (1 - self.dampening) * g
                p = p - rate * (g + self.momentum * m if self.nesterov else m if self.momentum else g)
            if self.decoupled:
                p = p - rate * decay * old
        return p


def explain_optimizer(trace: Trace, table: list, transform: Any, layers: Layers) -> str:
    """The setting of PyTorch's rule that gives what Optax makes of PyTorch's own gradients; empty if none."""
    if trace.optimizer not in KNOWN or trace.group.get("amsgrad") or trace.group.get("maximize"):
        return ""
    flax = _replay(trace, table, transform, layers)
    names = [n for n in flax if all(n in step for step in trace.gradients)]
    matrices = [n for n in names if trace.start[n].ndim > 1][: MAX_EXPLAINED // 2]
    names = matrices + [n for n in names if trace.start[n].ndim < 2][: MAX_EXPLAINED // 2]
    if not names:
        return ""
    norms = [float(np.sqrt(sum((g**2).sum() for g in step.values()))) for step in trace.gradients]
    base = _rule_of(trace)

    def fits(rule: Rule) -> bool:
        return all(
            difference(rule.run(trace.start[n], [step[n] for step in trace.gradients], norms), flax[n], 1e-3)
            < RELATIVE
            for n in names
        )

    if fits(base):
        return (
            "not the optimizer: given PyTorch's gradients it takes the same steps, so later gradients differ"
        )
    singles = _variations(base, trace)
    for words, change in singles:
        if fits(replace(base, **change)):
            return words
    for (words, change), (more, other) in itertools.combinations(singles, 2):
        if not change.keys() & other.keys() and fits(replace(base, **change, **other)):
            return f"{words}; {more}"
    return ""


def _replay(trace: Trace, table: list, transform: Any, layers: Layers) -> Tensors:
    """What Optax makes of PyTorch's parameters and gradients, by PyTorch's names."""
    import optax

    _, params, _ = nnx.split(layers.flax.model, nnx.Param, ...)
    memory = _start(transform, params)
    by_variable = {path: (names, gradient) for _, names, path, _, gradient in table}
    for step in trace.gradients:
        flat = {}
        for path, leaf in nnx.to_flat_state(cast(nnx.State, params)):
            value = np.zeros(leaf.get_value().shape)
            if path in by_variable and all(n in step for n in by_variable[path][0]):
                value = by_variable[path][1](*(step[n] for n in by_variable[path][0]))
            flat[path] = leaf.replace(jax.numpy.asarray(value))
        gradients = nnx.from_flat_state(list(flat.items()))
        updates, memory = transform.update(gradients, memory, params)
        params = optax.apply_updates(params, updates)
    final = by_path(params)
    back: Tensors = {}
    for name, names, path, _, gradient in table:
        if len(names) == 1 and path in final and names[0] in trace.start:
            # A layout only permutes, so permuting the numbers of each place inverts it.
            places = np.arange(trace.start[names[0]].size).reshape(trace.start[names[0]].shape)
            order = gradient(places)
            if order.size == places.size:
                out = np.empty(places.size)
                out[order.ravel()] = final[path].ravel()
                back[name] = out.reshape(places.shape)
    return back


def _rule_of(trace: Trace) -> Rule:
    group = trace.group
    adam = "betas" in group
    return Rule(
        adam,
        tuple(trace.rates),
        tuple(group.get("betas", (0.9, 0.999))),  # pyright: ignore
        group.get("eps", 1e-8),
        decay=group.get("weight_decay", 0.0),
        decoupled="AdamW" in trace.optimizer or bool(group.get("decoupled_weight_decay")),
        momentum=group.get("momentum", 0.0),
        dampening=group.get("dampening", 0.0),
        nesterov=bool(group.get("nesterov")),
    )


def _variations(base: Rule, trace: Trace) -> list[tuple[str, dict[str, Any]]]:
    """What Flax's side may have instead, in words and as a change of the rule."""
    rates, found = trace.rates, []

    def add(words: str, **change: Any) -> None:
        if any(getattr(base, key) != value for key, value in change.items()):
            found.append((words, change))

    if not base.adam and base.momentum:  # the same numbers as another learning rate, but likelier
        add(
            "Flax averages the gradients (optax.ema, factor 1 - momentum), PyTorch sums them",
            dampening=base.momentum,
        )
    last = rates[-1]
    add(
        "Flax's schedule is one step ahead: PyTorch steps its scheduler after the optimizer",
        rates=(*rates[1:], last),
    )
    add("Flax's schedule is one step behind", rates=(rates[0], *rates[:-1]))
    add("Flax's learning rate does not follow the schedule", rates=(rates[0],) * len(rates))
    for times in (2.0, 0.5, 10.0, 0.1):
        add(f"Flax's learning rate is {times:g} times PyTorch's", rates=tuple(times * r for r in rates))
    for decay in (0.0, 1e-4, 1e-2, 5e-4, 1e-3, 0.05, 0.1):
        add(
            f"Flax's weight decay is {decay:g}, PyTorch's {base.decay:g}"
            + (" (optax.adamw's default is 1e-4, PyTorch's AdamW's is 1e-2)" if decay == 1e-4 else ""),
            decay=decay,
        )
    how = ("coupled: added to the gradient", "decoupled: taken from the weights")
    add(
        f"Flax's weight decay is {how[not base.decoupled]}; PyTorch's is {how[base.decoupled]}",
        decoupled=not base.decoupled,
    )
    add("Flax's weight decay leaves out biases and scales, PyTorch's does not", decay_vectors=False)
    for clip in (1.0, 0.5, 0.1, 5.0, 10.0):
        add(f"Flax clips the gradients' norm at {clip:g}, PyTorch does not", clip=clip)
    if base.adam:
        for epsilon in (1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-10, 1e-12, 0.0):
            add(f"Flax's epsilon is {epsilon:g}, PyTorch's {base.epsilon:g}", epsilon=epsilon)
        for epsilon in dict.fromkeys((base.epsilon, 1e-8, 1e-6, 1e-5)):
            add(
                f"Flax adds epsilon {epsilon:g} inside the root (eps_root), PyTorch outside (eps)",
                inside=epsilon,
                epsilon=0.0,
            )
            add(f"Flax adds eps_root {epsilon:g} inside the root, PyTorch nothing", inside=epsilon)
        for beta in (0.9, 0.95, 0.98, 0.99, 0.999):
            add(f"Flax's b2 is {beta:g}, PyTorch's {base.betas[1]:g}", betas=(base.betas[0], beta))
            add(f"Flax's b1 is {beta:g}, PyTorch's {base.betas[0]:g}", betas=(beta, base.betas[1]))
        add("Flax's moments have no bias correction", corrected=False)
        add("Flax uses Nesterov momentum, PyTorch does not", nesterov=not base.nesterov)
    else:
        words = ("does not", "does") if base.nesterov else ("does", "does not")
        add(f"Nesterov momentum: Flax {words[0]}, PyTorch {words[1]}", nesterov=not base.nesterov)
        for momentum in (0.0, 0.8, 0.9, 0.95, 0.99, round(1 - base.momentum, 6)):
            add(f"Flax's momentum is {momentum:g}, PyTorch's {base.momentum:g}", momentum=momentum)
        add("PyTorch dampens the momentum, Flax does not", dampening=0.0)
    return found
