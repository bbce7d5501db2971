"""torchvision's ResNet-50 and a Flax port: how much memory and time a large comparison takes.

Usage: python -m tests.resnet50 passes|compare. Prints the seconds and the peak memory in MiB of forward and
backward passes of both models in float64, or of their comparison.
"""

import resource
import sys
import time

import jax
import numpy as np
import torch
import torchvision
from flax import nnx

import lockstep
from tests.pairs import randomise

SHAPE = (2, 3, 224, 224)
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))  # blocks, channels, first stride


class ConvNorm(nnx.Module):
    def __init__(self, inputs, outputs, kernel, stride, rngs):
        pads = ((kernel // 2, kernel // 2),) * 2
        self.conv = nnx.Conv(
            inputs, outputs, (kernel, kernel), stride, padding=pads, use_bias=False, rngs=rngs
        )
        self.bn = nnx.BatchNorm(outputs, rngs=rngs)

    def __call__(self, x):
        return self.bn(self.conv(x))


class Bottleneck(nnx.Module):
    def __init__(self, inputs, width, stride, rngs):
        self.first = ConvNorm(inputs, width, 1, 1, rngs)
        self.second = ConvNorm(width, width, 3, stride, rngs)
        self.third = ConvNorm(width, 4 * width, 1, 1, rngs)
        self.down = ConvNorm(inputs, 4 * width, 1, stride, rngs) if inputs != 4 * width else None

    def __call__(self, x):
        y = self.third(nnx.relu(self.second(nnx.relu(self.first(x)))))
        return nnx.relu(y + (x if self.down is None else self.down(x)))


class ResNet50(nnx.Module):
    def __init__(self, rngs):
        self.stem = ConvNorm(3, 64, 7, 2, rngs)
        blocks, inputs = [], 64
        for count, width, stride in STAGES:
            for index in range(count):
                blocks.append(Bottleneck(inputs, width, 1 if index else stride, rngs))
                inputs = 4 * width
        self.blocks = nnx.List(blocks)
        self.fc = nnx.Linear(inputs, 1000, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((1, 2)))


def run_passes(torch_model: torch.nn.Module, flax_model: nnx.Module, images: np.ndarray) -> None:
    """Forward and backward of both in float64, as a user would write them."""
    x = torch.tensor(images).double().requires_grad_()
    torch_model.double()(x).sum().backward()
    with jax.enable_x64(True):
        flax_model.eval()
        graph, state = nnx.split(flax_model)
        state = jax.tree.map(lambda leaf: leaf.astype(np.float64), state)

        def total(state, x):
            return nnx.merge(graph, state)(x).sum()

        inputs = jax.numpy.asarray(images.transpose(0, 2, 3, 1), np.float64)
        jax.block_until_ready(jax.grad(total, (0, 1))(state, inputs))


def main(what: str) -> None:
    torch_model = randomise(torchvision.models.resnet50(weights=None)).eval()
    flax_model = ResNet50(nnx.Rngs(0))
    images = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    began = time.perf_counter()
    if what == "passes":
        run_passes(torch_model, flax_model, images)
    else:
        result = lockstep.compare(torch_model, flax_model, images)
        if not result.equal:
            sys.exit(str(result))
    seconds = time.perf_counter() - began
    print(f"{seconds:.0f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


if __name__ == "__main__":
    main(sys.argv[1])
