"""Optimizers and schedules that PyTorch and Optax both have: what makes them equal, and to which step.

Both sides minimise the same noisy quadratic in float64. Each entry has PyTorch's optimizer, Optax's by the
same name with the same learning rate and all else as it comes, and the form of Optax's that is equal, if any.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.optim import lr_scheduler

STEPS = 100
EQUAL = 1e-12  # relative difference of the parameters up to which two optimizers take the same steps
LR = 0.01

Params = dict[str, np.ndarray]
MakeTorch = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Entry:
    """One optimizer in both libraries."""

    name: str  # in PyTorch
    reference: MakeTorch
    same_name: Callable[[], optax.GradientTransformation] | None  # Optax's, all else as it comes
    equal: Callable[[], optax.GradientTransformation] | None  # the form that is equal
    settings: str  # of that form, in words; or why there is none
    clip: Callable[[list[torch.Tensor]], Any] | None = None  # of PyTorch's gradients, before its step


@dataclass(frozen=True)
class Schedule:
    """One learning-rate schedule in both libraries; each is read at the steps 0 to T - 1."""

    name: str
    reference: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
    same_name: optax.Schedule | None
    equal: optax.Schedule
    settings: str


def _clip_by_torch_norm(grads: Any, _: Any) -> Any:
    """``torch.nn.utils.clip_grad_norm_`` to a norm of 1."""
    factor = jnp.minimum(1.0, 1.0 / (optax.tree.norm(grads) + 1e-6))
    return jax.tree.map(lambda g: g * factor, grads)


def _scale_by_rprop(shrink: float = 0.5, grow: float = 1.2, low: float = 1e-6, high: float = 50.0):
    """Rprop that applies each update in its own step, as ``torch.optim.Rprop`` does."""

    def init(params: Any) -> Any:
        return jax.tree.map(lambda p: jnp.full_like(p, LR), params), jax.tree.map(jnp.zeros_like, params)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        steps, before = state
        signs = jax.tree.map(lambda g, b: jnp.sign(g * b), grads, before)
        factor = jax.tree.map(lambda s: jnp.where(s > 0, grow, jnp.where(s < 0, shrink, 1.0)), signs)
        steps = jax.tree.map(lambda size, f: jnp.clip(size * f, low, high), steps, factor)
        grads = jax.tree.map(lambda s, g: jnp.where(s < 0, 0.0, g), signs, grads)
        return jax.tree.map(lambda size, g: size * jnp.sign(g), steps, grads), (steps, grads)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _scale_by_torch_nadam(decay: float = 4e-3, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    """NAdam with PyTorch's growing momentum (Dozat 2016, with a schedule of mu), which Optax lacks.

    PyTorch keeps the product of the momenta in float32, whatever the parameters are.
    """

    def momentum(step: Any) -> Any:
        return b1 * (1 - 0.5 * 0.96 ** (step * decay))

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32), zeros, zeros

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        count, product, m, v = state
        step = (count + 1).astype(jnp.float64)
        mu, next_mu = momentum(step), momentum(step + 1)
        product = product * mu.astype(jnp.float32)
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, grads)

        def direction(g: Any, m: Any, v: Any) -> Any:
            denominator = jnp.sqrt(v / (1 - b2**step)) + eps
            so_far = product.astype(jnp.float64)
            return ((1 - mu) / (1 - so_far) * g + next_mu / (1 - so_far * next_mu) * m) / denominator

        return jax.tree.map(direction, grads, m, v), (count + 1, product, m, v)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


OPTIMIZERS = [
    Entry(
        "SGD", lambda p: torch.optim.SGD(p, LR), lambda: optax.sgd(LR), lambda: optax.sgd(LR), "as it comes"
    ),
    Entry(
        "SGD, momentum",
        lambda p: torch.optim.SGD(p, LR, 0.9),
        lambda: optax.sgd(LR, 0.9),
        lambda: optax.sgd(LR, 0.9),
        "as it comes",
    ),
    Entry(
        "SGD, Nesterov",
        lambda p: torch.optim.SGD(p, LR, 0.9, nesterov=True),
        lambda: optax.sgd(LR, 0.9, nesterov=True),
        lambda: optax.sgd(LR, 0.9, nesterov=True),
        "as it comes",
    ),
    Entry(
        "SGD, momentum and weight_decay=0.01",
        lambda p: torch.optim.SGD(p, LR, 0.9, weight_decay=0.01),
        lambda: optax.chain(optax.sgd(LR, 0.9), optax.add_decayed_weights(-LR * 0.01)),
        lambda: optax.chain(optax.add_decayed_weights(0.01), optax.sgd(LR, 0.9)),
        "add_decayed_weights before sgd, not after it",
    ),
    Entry(
        "SGD, dampening=0.5",
        lambda p: torch.optim.SGD(p, LR, 0.9, dampening=0.5),
        lambda: optax.sgd(LR, 0.9),
        None,
        "no dampening in Optax; PyTorch leaves it out of the first step, so no rate replaces it",
    ),
    Entry(
        "Adam",
        lambda p: torch.optim.Adam(p, LR),
        lambda: optax.adam(LR),
        lambda: optax.adam(LR),
        "as it comes",
    ),
    Entry(
        "Adam, weight_decay=0.01",
        lambda p: torch.optim.Adam(p, LR, weight_decay=0.01),
        lambda: optax.adamw(LR, weight_decay=0.01),
        lambda: optax.chain(optax.add_decayed_weights(0.01), optax.adam(LR)),
        "add_decayed_weights before adam; adamw is another algorithm",
    ),
    Entry(
        "Adam, amsgrad",
        lambda p: torch.optim.Adam(p, LR, amsgrad=True),
        lambda: optax.amsgrad(LR),
        None,
        "PyTorch corrects the largest second moment, Optax takes the largest corrected one",
    ),
    Entry(
        "AdamW",
        lambda p: torch.optim.AdamW(p, LR),
        lambda: optax.adamw(LR),
        lambda: optax.adamw(LR, weight_decay=0.01),
        "weight_decay=0.01; Optax's default is 0.0001",
    ),
    Entry(
        "NAdam",
        lambda p: torch.optim.NAdam(p, LR),
        lambda: optax.nadam(LR),
        lambda: optax.chain(_scale_by_torch_nadam(), optax.scale(-LR)),
        "PyTorch's momentum grows (momentum_decay=0.004), Optax's is constant: one's own function",
    ),
    Entry(
        "RAdam",
        lambda p: torch.optim.RAdam(p, LR),
        lambda: optax.radam(LR),
        None,
        "epsilon before the root's bias correction in PyTorch, after it in Optax",
    ),
    Entry(
        "RAdam, eps=0",
        lambda p: torch.optim.RAdam(p, LR, eps=0.0),
        lambda: optax.radam(LR, eps=0.0),
        lambda: optax.radam(LR, eps=0.0),
        "without epsilon, as it comes",
    ),
    Entry(
        "Adamax",
        lambda p: torch.optim.Adamax(p, LR),
        lambda: optax.adamax(LR),
        lambda: optax.adamax(LR),
        "as it comes",
    ),
    Entry(
        "RMSprop",
        lambda p: torch.optim.RMSprop(p, LR),
        lambda: optax.rmsprop(LR),
        lambda: optax.rmsprop(LR, decay=0.99, eps=1e-8, eps_in_sqrt=False),
        "decay=0.99 and eps_in_sqrt=False; Optax's default decay is 0.9",
    ),
    Entry(
        "RMSprop, centered, momentum",
        lambda p: torch.optim.RMSprop(p, LR, momentum=0.9, centered=True),
        lambda: optax.rmsprop(LR, momentum=0.9, centered=True),
        lambda: optax.rmsprop(LR, decay=0.99, eps_in_sqrt=False, centered=True, momentum=0.9),
        "decay=0.99 and eps_in_sqrt=False",
    ),
    Entry(
        "Adagrad",
        lambda p: torch.optim.Adagrad(p, LR),
        lambda: optax.adagrad(LR),
        None,
        "epsilon beside the root in PyTorch, under it in Optax; Optax starts from 0.1",
    ),
    Entry(
        "Adagrad, eps=0",
        lambda p: torch.optim.Adagrad(p, LR, eps=0.0),
        lambda: optax.adagrad(LR, eps=0.0),
        lambda: optax.adagrad(LR, initial_accumulator_value=0.0, eps=0.0),
        "without epsilon, initial_accumulator_value=0",
    ),
    Entry(
        "Adadelta",
        lambda p: torch.optim.Adadelta(p, 1.0),
        lambda: optax.adadelta(1.0),
        lambda: optax.adadelta(1.0, rho=0.9, eps=1e-6),
        "as it comes",
    ),
    Entry(
        "Rprop",
        lambda p: torch.optim.Rprop(p, LR),
        lambda: optax.rprop(LR),
        lambda: optax.chain(_scale_by_rprop(), optax.scale(-1.0)),
        "Optax applies each update one step late: one's own function",
    ),
    Entry(
        "clip_grad_norm_(1.0), SGD",
        lambda p: torch.optim.SGD(p, LR, 0.9),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(LR, 0.9)),
        lambda: optax.chain(optax.stateless(_clip_by_torch_norm), optax.sgd(LR, 0.9)),
        "PyTorch divides by the norm + 1e-6, Optax by the norm: one's own function",
        clip=lambda p: torch.nn.utils.clip_grad_norm_(p, 1.0),
    ),
    Entry(
        "clip_grad_value_(0.1), SGD",
        lambda p: torch.optim.SGD(p, LR, 0.9),
        lambda: optax.chain(optax.clip(0.1), optax.sgd(LR, 0.9)),
        lambda: optax.chain(optax.clip(0.1), optax.sgd(LR, 0.9)),
        "as it comes: optax.clip",
        clip=lambda p: torch.nn.utils.clip_grad_value_(p, 0.1),
    ),
]


def parameters() -> Params:
    """A matrix and a vector."""
    rng = np.random.default_rng(0)
    return {"weight": rng.standard_normal((4, 3)), "bias": rng.standard_normal(5)}


def gradient(params: Params, step: int) -> Params:
    """Of the quadratic with its minimum at 0.3 and noise that depends on the step."""
    rng = np.random.default_rng(1000 + step)
    return {
        name: (params[name] - 0.3) + 0.5 * rng.standard_normal(params[name].shape) for name in sorted(params)
    }


def run_torch(entry: Entry, steps: int = STEPS) -> list[Params]:
    """The parameters after each step."""
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in parameters().items()}
    optimizer = entry.reference(list(tensors.values()))
    history = []
    for step in range(steps):
        current = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
        for name, value in gradient(current, step).items():
            tensors[name].grad = torch.from_numpy(value)
        if entry.clip is not None:
            entry.clip(list(tensors.values()))
        optimizer.step()
        history.append({name: tensor.detach().numpy().copy() for name, tensor in tensors.items()})
    return history


def run_optax(optimizer: optax.GradientTransformation, steps: int = STEPS) -> list[Params]:
    """The parameters after each step."""
    params: Any = {name: jnp.asarray(value) for name, value in parameters().items()}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    history = []
    for step in range(steps):
        grads = {name: jnp.asarray(g) for name, g in gradient(jax.tree.map(np.asarray, params), step).items()}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append(jax.tree.map(np.asarray, params))
    return history


def differences(reference: list[Params], port: list[Params]) -> np.ndarray:
    """Of each step, the norm of the difference relative to the norm of the reference's parameters."""

    def flat(params: Params) -> np.ndarray:
        return np.concatenate([params[name].ravel() for name in sorted(params)])

    return np.array(
        [
            np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(a))
            for a, b in zip(reference, port, strict=True)
        ]
    )


def learning_rates(schedule: Schedule, steps: int = STEPS) -> np.ndarray:
    """PyTorch's rate at each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], LR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls its parts with an epoch, and warns of it
        scheduler = schedule.reference(optimizer)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return np.array(rates)


SCHEDULES = [
    Schedule(
        "CosineAnnealingLR(T)",
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
        optax.cosine_decay_schedule(LR, STEPS),
        optax.cosine_decay_schedule(LR, STEPS),
        "as it comes: both count from 0",
    ),
    Schedule(
        "OneCycleLR(T), cosine",
        lambda o: lr_scheduler.OneCycleLR(o, LR, STEPS),
        optax.cosine_onecycle_schedule(STEPS, LR),
        optax.join_schedules(
            [
                lambda t: LR + (LR / 25 - LR) * (1 + jnp.cos(jnp.pi * t / (0.3 * STEPS - 1))) / 2,
                lambda t: LR / 25e4 + (LR - LR / 25e4) * (1 + jnp.cos(jnp.pi * t / (0.7 * STEPS))) / 2,
            ],
            [round(0.3 * STEPS) - 1],
        ),
        "PyTorch peaks at 0.3 T - 1 and ends at T - 1, Optax at 0.3 T and T: two cosines of one's own",
    ),
    Schedule(
        "LinearLR, then CosineAnnealingLR",
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, 0.1, total_iters=10),
                lr_scheduler.CosineAnnealingLR(o, STEPS - 10),
            ],
            [10],
        ),
        optax.warmup_cosine_decay_schedule(0.0, LR, 10, STEPS),
        optax.warmup_cosine_decay_schedule(0.1 * LR, LR, 10, STEPS),
        "init_value=0.1 lr; decay_steps counts the warm-up too",
    ),
    Schedule(
        "ExponentialLR(0.95)",
        lambda o: lr_scheduler.ExponentialLR(o, 0.95),
        optax.exponential_decay(LR, 1, 0.95),
        optax.exponential_decay(LR, 1, 0.95),
        "transition_steps=1",
    ),
    Schedule(
        "StepLR(30, 0.1)",
        lambda o: lr_scheduler.StepLR(o, 30, 0.1),
        optax.exponential_decay(LR, 30, 0.1),
        optax.exponential_decay(LR, 30, 0.1, staircase=True),
        "staircase=True",
    ),
    Schedule(
        "MultiStepLR([30, 80], 0.1)",
        lambda o: lr_scheduler.MultiStepLR(o, [30, 80], 0.1),
        optax.piecewise_constant_schedule(LR, {30: 0.1, 80: 0.1}),
        optax.piecewise_constant_schedule(LR, {30: 0.1, 80: 0.1}),
        "as it comes",
    ),
    Schedule(
        "PolynomialLR(T, power=2)",
        lambda o: lr_scheduler.PolynomialLR(o, STEPS, 2.0),
        optax.polynomial_schedule(LR, 0.0, 2, STEPS),
        optax.polynomial_schedule(LR, 0.0, 2, STEPS),
        "as it comes",
    ),
    Schedule(
        "ConstantLR(1/3, 5)",
        lambda o: lr_scheduler.ConstantLR(o),
        None,
        optax.join_schedules([optax.constant_schedule(LR / 3), optax.constant_schedule(LR)], [5]),
        "join_schedules of two constants",
    ),
    Schedule(
        "CosineAnnealingWarmRestarts(25)",
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 25),
        None,
        optax.join_schedules([optax.cosine_decay_schedule(LR, 25)] * 4, [25, 50, 75]),
        "join_schedules of cosine_decay_schedule",
    ),
]


def first_apart(difference: np.ndarray) -> int | None:
    """The first step, from 1, that is further apart than `EQUAL`."""
    apart = np.flatnonzero(~(difference <= EQUAL))
    return int(apart[0]) + 1 if len(apart) else None


def measure() -> list[dict[str, Any]]:
    """One row for each optimizer and schedule: relative differences over `STEPS` steps in float64."""
    jax.config.update("jax_enable_x64", True)
    rows: list[dict[str, Any]] = []
    for entry in OPTIMIZERS:
        reference = run_torch(entry)
        apart = {
            key: None if make is None else differences(reference, run_optax(make()))
            for key, make in (("same_name", entry.same_name), ("equal_form", entry.equal))
        }
        rows.append(_row("optimizer", entry.name, entry.settings, apart))
    for schedule in SCHEDULES:
        rates = learning_rates(schedule)
        apart = {
            key: None
            if function is None
            else np.abs(np.array([np.asarray(function(step)).item() for step in range(STEPS)]) - rates)
            / rates.max()
            for key, function in (("same_name", schedule.same_name), ("equal_form", schedule.equal))
        }
        rows.append(_row("schedule", schedule.name, schedule.settings, apart))
    return rows


def _row(what: str, name: str, settings: str, apart: dict[str, np.ndarray | None]) -> dict[str, Any]:
    row: dict[str, Any] = {"what": what, "name": name, "settings": settings}
    for key, difference in apart.items():
        row[key] = None if difference is None else float(difference.max())
        row[f"{key}_step"] = None if difference is None else first_apart(difference)
    return row
