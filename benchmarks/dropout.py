"""What dropout costs, ours and the frameworks' own: ``python -m benchmarks.dropout``.

Forward and backward of ReLU and dropout, compiled, on the largest activation of net10040 at batch 128; the
cost is the time over that of ReLU alone. The variants take turns in one process.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.table import Table
from torch.nn import functional

import jax_impl.model
import torch_impl.model
from benchmarks.machine import describe_machine
from recipe import report
from recipe.files import write_atomically
from recipe.options import check_range, run_command

SHAPE_NCHW = (128, 16, 28, 28)
RATE = 0.05


@dataclass(frozen=True)
class DropoutOptions:
    """Time dropout by hash against the frameworks' own."""

    rounds: int = 60
    """How often each variant is timed; they take turns."""
    out: Path = Path("results/dropout.json")
    """Result file."""


def torch_variants() -> dict[str, Callable[[], object]]:
    """Calls that run one forward and backward pass each, compiled."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(SHAPE_NCHW, device=device).to(memory_format=torch.channels_last)
    x.requires_grad_()
    upstream = torch.randn_like(x)
    key = torch.tensor([12345, -678], dtype=torch.int32, device=device)

    def call(operation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        compiled = torch.compile(operation, dynamic=False)

        def run() -> None:
            x.grad = None
            compiled(x).backward(upstream)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    return {
        "torch, ReLU alone": call(lambda x: functional.relu(x) * 1.05),
        "torch, by hash": call(lambda x: torch_impl.model.drop(functional.relu(x), RATE, key)),
        "torch, its own": call(lambda x: functional.dropout(functional.relu(x), RATE)),
    }


def jax_variants() -> dict[str, Callable[[], object]]:
    """The same in JAX; its own dropout is what ``nnx.Dropout`` does."""
    shape = tuple(SHAPE_NCHW[axis] for axis in (0, 2, 3, 1))
    x, upstream = (
        jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32) for seed in (0, 1)
    )
    key = jnp.array([12345, -678], jnp.int32)
    generator = jax.random.key(0)

    def own(x: jax.Array) -> jax.Array:
        keep = jax.random.bernoulli(generator, 1 - RATE, x.shape)
        return jnp.where(keep, x / (1 - RATE), 0)

    def call(operation: Callable[[jax.Array], jax.Array]) -> Callable[[], object]:
        @jax.jit
        def step(x: jax.Array, upstream: jax.Array) -> tuple[jax.Array, jax.Array]:
            y, pull = jax.vjp(operation, x)
            return y, pull(upstream)[0]

        return lambda: jax.block_until_ready(step(x, upstream))

    return {
        "jax, ReLU alone": call(lambda x: jax.nn.relu(x) * 1.05),
        "jax, by hash": call(lambda x: jax_impl.model.drop(jax.nn.relu(x), RATE, key)),
        "jax, its own": call(lambda x: own(jax.nn.relu(x))),
    }


def main(options: DropoutOptions) -> None:
    """Time all variants in turn, print a table and write the result."""
    check_range("--rounds", options.rounds, 3, 10_000)
    variants = torch_variants() | jax_variants()
    for call in variants.values():
        for _ in range(5):
            call()
    times: dict[str, list[int]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, call in variants.items():
            began = time.perf_counter_ns()
            call()
            times[name].append(time.perf_counter_ns() - began)
    medians = {name: median(values) / 1e6 for name, values in times.items()}
    table = Table(title=f"ReLU and dropout of {SHAPE_NCHW}, forward and backward, float32")
    for heading in ("", "median ms", "over ReLU alone ms"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}", f"{value - medians[name.split(',')[0] + ', ReLU alone']:.2f}")
    report.console.print(table)
    result = describe_machine() | {
        "shape": SHAPE_NCHW,
        "rate": RATE,
        "rounds": options.rounds,
        "median_ms": medians,
    }
    write_atomically(options.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    run_command(DropoutOptions, main, "python -m benchmarks.dropout")
