"""A decoder: transposed and depthwise convolution, instance norm, leaky ReLU, bilinear upsampling."""

import jax
import jax.numpy as jnp
from flax import nnx
from torch import nn
from torch.nn import functional

from tests.pairs import Fault, images, randomise


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 4, 2, 1)
        self.norm = nn.InstanceNorm2d(6, affine=True)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.gate = nn.Linear(6, 6)
        self.last = nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        x = functional.leaky_relu(self.norm(self.up(x)), 0.2)
        x = x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]
        x = self.depthwise(x)
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(x)


def torch_model(seed=0):
    return randomise(TorchNet(), seed).eval()


def align_corners(x, size):
    """Bilinear upsampling in which the corners' centres stay, which jax.image does not offer."""
    n, h, w, c = x.shape
    scale = jnp.array([(size - 1) / (h - 1), (size - 1) / (w - 1)], x.dtype)
    shift = 0.5 - 0.5 * scale
    return jax.image.scale_and_translate(
        x, (n, size, size, c), (1, 2), scale, shift, "linear", antialias=False
    )


class Net(nnx.Module):
    def __init__(self, fault, rngs):
        self.fault = fault
        pads = "SAME" if fault == "padding_of_transposed" else ((2, 2), (2, 2))
        pads = ((1, 1), (1, 1)) if fault == "torch_padding_of_transposed" else pads
        self.up = nnx.ConvTranspose(4, 6, (4, 4), (2, 2), padding=pads, rngs=rngs)
        self.norm = nnx.InstanceNorm(6, epsilon=1e-6 if fault == "default_epsilon" else 1e-5, rngs=rngs)
        self.depthwise = nnx.Conv(6, 6, (3, 3), padding=1, feature_group_count=6, rngs=rngs)
        self.gate = nnx.Linear(6, 6, rngs=rngs)
        self.last = nnx.Conv(
            6, 3, (3, 3), padding="SAME" if fault == "zero_padding" else "REFLECT", rngs=rngs
        )

    def __call__(self, x):
        x = nnx.leaky_relu(self.norm(self.up(x)), 0.01 if self.fault == "slope" else 0.2)
        gate = nnx.hard_sigmoid if self.fault == "hard_sigmoid" else nnx.sigmoid
        x = self.depthwise(x * gate(self.gate(x.mean((1, 2))))[:, None, None])
        shape = (x.shape[0], 16, 16, 6)
        if self.fault == "align_corners":
            x = align_corners(x, 16)
        else:
            x = jax.image.resize(x, shape, "nearest" if self.fault == "nearest" else "bilinear")
        return self.last(x)


def flax_model(fault=""):
    return Net(fault, nnx.Rngs(0))


def inputs(rng):
    return images(rng, 2, 4, 4, 4)


FAULTS = {
    "torch_padding_of_transposed": Fault("up", r"padding \(\(2, 2\), \(2, 2\)\)"),
    "default_epsilon": Fault("norm", "epsilon is 1e-06 in the port, 1e-05"),
    "slope": Fault("gate", r"slope.* 0\.2.* 0\.01|slope.* 0\.01.* 0\.2"),
    "hard_sigmoid": Fault("depthwise", "sigmoid"),
    "zero_padding": Fault("last", "reflect|REFLECT|padding"),
    "align_corners": Fault("last", "align_corners"),
    "nearest": Fault("last", "nearest"),
}
