"""Training steps with AdamW, a schedule and cross entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from tests.pairs import Fault, randomise

LABELS = np.random.default_rng(5).integers(0, 4, 8)
STEPS = 4


def torch_model(seed=0):
    return randomise(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), seed).train()


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.tanh(self.first(x)))


def flax_model(fault=""):
    return Net(nnx.Rngs(0))


def inputs(rng):
    return rng.standard_normal((8, 6)).astype(np.float32)


def torch_loss(logits):
    return functional.cross_entropy(logits, torch.tensor(LABELS))


def torch_optimizer(parameters):
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.02)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 8)


def flax_loss(logits, fault=""):
    if fault == "smoothed_labels":
        targets = optax.smooth_labels(jnp.eye(4)[LABELS], 0.1)
        return optax.softmax_cross_entropy(logits, targets).mean()
    if fault == "softmax_twice":
        logits = nnx.softmax(logits)
    if fault == "probabilities":
        return -jnp.log(logits[jnp.arange(8), LABELS]).mean()
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(LABELS))
    return losses.sum() if fault == "summed_loss" else losses.mean()


def flax_optimizer(fault=""):
    late = {"schedule_late": -1, "schedule_early": 1}.get(fault, 0)
    rate = 0.01 if fault == "no_schedule" else lambda step: 0.01 * (1 - jnp.maximum(step + late, 0) / 8)
    options = {"weight_decay": 0.02}
    options |= {
        "default_decay": {"weight_decay": 1e-4},
        "no_decay": {"weight_decay": 0.0},
        "decay_of_matrices": {"mask": lambda p: jax.tree.map(lambda x: x.ndim > 1, p)},
        "epsilon_in_root": {"eps": 0.0, "eps_root": 1e-8},
        "other_epsilon": {"eps": 1e-6},
        "other_b2": {"b2": 0.99},
        "nesterov": {"nesterov": True},
    }.get(fault, {})
    if fault == "coupled_decay":
        return optax.chain(optax.add_decayed_weights(0.02), optax.adam(rate))
    if fault == "clipped":
        return optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate, **options))
    return optax.adamw(rate, **options)


def options(fault=""):
    """What `lockstep.compare` takes beside the models."""
    return {
        "loss": (torch_loss, lambda logits: flax_loss(logits, fault)),
        "optimizers": (torch_optimizer, flax_optimizer(fault)),
        "steps": STEPS,
    }


ROW = f"(steps 1 to {STEPS})"
FAULTS = {
    "summed_loss": Fault("(loss)", "the mean over 8 .* the sum"),
    "probabilities": Fault("(loss)", "without softmax, as if the outputs were probabilities"),
    "smoothed_labels": Fault("(loss)", "smooth"),
    "default_decay": Fault(ROW, "weight decay is 0.0001, the reference's 0.02"),
    "no_decay": Fault(ROW, "weight decay is 0, the reference's 0.02"),
    "coupled_decay": Fault(ROW, "decay is coupled"),
    "decay_of_matrices": Fault(ROW, "leaves out biases"),
    "schedule_late": Fault(ROW, "one step behind|learning rate"),
    "schedule_early": Fault(ROW, "one step ahead"),
    "no_schedule": Fault(ROW, "does not follow the schedule"),
    "epsilon_in_root": Fault(ROW, "inside the root"),
    "other_epsilon": Fault(ROW, "epsilon is 1e-06"),
    "other_b2": Fault(ROW, "b2 is 0.99"),
    "nesterov": Fault(ROW, "Nesterov"),
    "clipped": Fault(ROW, "clips the gradients' norm at 0.5"),
}
