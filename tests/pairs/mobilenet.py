"""torchvision's MobileNetV3-Small and a port of it to Flax NNX; the faults are those met while porting."""

import jax.numpy as jnp
import torchvision
from flax import nnx

from tests.pairs import Fault, images, randomise

#          inputs, kernel, expanded, outputs, squeeze, hard swish, stride
BLOCKS = (
    (16, 3, 16, 16, True, False, 2),
    (16, 3, 72, 24, False, False, 2),
    (24, 3, 88, 24, False, False, 1),
    (24, 5, 96, 40, True, True, 2),
    (40, 5, 240, 40, True, True, 1),
    (40, 5, 240, 40, True, True, 1),
    (40, 5, 120, 48, True, True, 1),
    (48, 5, 144, 48, True, True, 1),
    (48, 5, 288, 96, True, True, 2),
    (96, 5, 576, 96, True, True, 1),
    (96, 5, 576, 96, True, True, 1),
)


def torch_model(seed=0):
    return randomise(torchvision.models.mobilenet_v3_small(num_classes=10), seed).eval()


class ConvNorm(nnx.Module):
    def __init__(self, inputs, outputs, kernel, stride, groups, fault, rngs):
        pad = (kernel - 1) // 2
        padding = "SAME" if fault == "same_padding" else ((pad, pad), (pad, pad))
        self.conv = nnx.Conv(inputs, outputs, (kernel, kernel), stride, padding=padding,
                             feature_group_count=groups, use_bias=False, rngs=rngs)  # fmt: skip
        epsilon = 1e-5 if fault == "default_epsilon" else 1e-3
        self.norm = nnx.BatchNorm(outputs, momentum=0.99, epsilon=epsilon, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class Squeeze(nnx.Module):
    def __init__(self, width, fault, rngs):
        small = max(8, (width // 4 + 4) // 8 * 8)
        small += 8 if small < 0.9 * (width // 4) else 0
        self.fc1, self.fc2 = (
            nnx.Conv(width, small, (1, 1), rngs=rngs),
            nnx.Conv(small, width, (1, 1), rngs=rngs),
        )
        self.gate = nnx.sigmoid if fault == "sigmoid" else nnx.hard_sigmoid

    def __call__(self, x):
        return x * self.gate(self.fc2(nnx.relu(self.fc1(x.mean((1, 2), keepdims=True)))))


class Block(nnx.Module):
    def __init__(self, inputs, kernel, expanded, outputs, squeeze, swish, stride, fault, rngs):
        self.act = nnx.hard_swish if swish else nnx.relu
        self.expand = ConvNorm(inputs, expanded, 1, 1, 1, fault, rngs) if expanded != inputs else None
        self.depthwise = ConvNorm(expanded, expanded, kernel, stride, expanded, fault, rngs)
        self.squeeze = Squeeze(expanded, fault, rngs) if squeeze else None
        self.project = ConvNorm(expanded, outputs, 1, 1, 1, fault, rngs)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x):
        y = x if self.expand is None else self.act(self.expand(x))
        y = self.act(self.depthwise(y))
        y = self.project(y if self.squeeze is None else self.squeeze(y))
        return x + y if self.residual else y


class MobileNet(nnx.Module):
    def __init__(self, fault, rngs):
        self.stem = ConvNorm(3, 16, 3, 2, 1, fault, rngs)
        self.blocks = nnx.List([Block(*block, fault, rngs) for block in BLOCKS])
        self.last = ConvNorm(96, 576, 1, 1, 1, fault, rngs)
        self.fc1, self.fc2 = nnx.Linear(576, 1024, rngs=rngs), nnx.Linear(1024, 10, rngs=rngs)
        self.stem_act = nnx.silu if fault == "silu" else nnx.hard_swish

    def __call__(self, x):
        x = self.stem_act(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = jnp.mean(nnx.hard_swish(self.last(x)), (1, 2))
        return self.fc2(nnx.hard_swish(self.fc1(x)))


def flax_model(fault=""):
    return MobileNet(fault, nnx.Rngs(0))


def inputs(rng):
    return images(rng, 2, 3, 64, 64)


def options(fault=""):
    """Forward only: backwards PyTorch's hard sigmoid has a sixth in float32, so that float64 shows 3e-8."""
    return {"backward": False}


FAULTS = {
    "same_padding": Fault("features.0.0", r"padding \(\(1, 1\), \(1, 1\)\)"),
    "default_epsilon": Fault("features.0.1", "epsilon is 1e-05 in the port, 0.001"),
    "sigmoid": Fault("features.1.block.2.0", "sigmoid"),
    "silu": Fault("features.1.block.0.0", "hard_swish.*SiLU"),
}
