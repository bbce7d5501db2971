"""The published network of 10,040 parameters in plain PyTorch and plain Flax, in eval mode."""

import jax.numpy as jnp
from flax import nnx
from torch import nn
from torch.nn import functional

from tests.pairs import Fault, images, randomise

#            inputs, outputs, size, padding
CHANNELS = (
    (1, 8, 3, 1),
    (8, 16, 3, 1),
    (16, 16, 3, 1),
    (16, 8, 1, 0),
    (8, 16, 3, 1),
    (16, 16, 3, 1),
    (16, 8, 1, 0),
    (8, 16, 3, 0),
    (16, 10, 3, 0),
)


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, padding=p, bias=False) for i, o, k, p in CHANNELS)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _, outputs, _, _ in CHANNELS[:-1])

    def forward(self, x):
        for index, norm in enumerate(self.norms):
            x = functional.relu(norm(self.convs[index](x)))
            if index in (2, 5):
                x = functional.max_pool2d(x, 2)
        return self.convs[-1](x).mean((2, 3))


def torch_model(seed=0):
    return randomise(TorchNet(), seed).eval()


class Net(nnx.Module):
    def __init__(self, fault, rngs):
        self.fault = fault
        self.convs = nnx.List(
            [
                nnx.Conv(
                    i,
                    o,
                    (k, k),
                    padding=((p, p), (p, p)),
                    use_bias=False,
                    rngs=rngs,
                    strides=1,
                    kernel_dilation=2 if (index, fault) == (4, "dilation") else 1,
                )
                for index, (i, o, k, p) in enumerate(CHANNELS)
            ]
        )
        dtype = jnp.bfloat16 if fault == "bfloat16" else None
        self.norms = nnx.List(
            [
                nnx.BatchNorm(
                    o,
                    rngs=rngs,
                    dtype=dtype if index == 3 else None,
                    use_scale=(index, fault) != (5, "no_scale"),
                )
                for index, (_, o, _, _) in enumerate(CHANNELS[:-1])
            ]
        )

    def __call__(self, x):
        for index, norm in enumerate(self.norms):
            x = self.convs[index](x)
            if self.fault == "batch_statistics" and index == 0:
                x = norm(x, use_running_average=False)
            else:
                x = norm(x)
            if self.fault == "leaky_relu" and index == 3:
                x = nnx.leaky_relu(x)
            elif self.fault == "float32_cast" and index == 4:
                x = nnx.relu(x.astype(jnp.float32)).astype(x.dtype)
            else:
                x = nnx.relu(x)
            if index in (2, 5):
                padding = "SAME" if self.fault == "strides_of_pool" else "VALID"
                strides = (1, 1) if self.fault == "strides_of_pool" and index == 5 else (2, 2)
                x = nnx.max_pool(x, (2, 2), strides=strides, padding=padding)
        x = self.convs[-1](x)
        return x.sum((1, 2)) if self.fault == "global_sum" else x.mean((1, 2))


def flax_model(fault=""):
    return Net(fault, nnx.Rngs(0))


def inputs(rng):
    return images(rng, 3, 1, 28, 28)


FAULTS = {
    "dilation": Fault("convs.4", r"kernel_dilation \(1, 1\)"),
    "bfloat16": Fault("norms.3", "bfloat16"),
    "no_scale": Fault("norms.5", r"parameter norms\.5\.weight"),
    "batch_statistics": Fault("norms.0", "statistics|the (mean|variance)"),
    "leaky_relu": Fault("convs.4", r"relu, the port leaky_relu of slope 0\.01"),
    "float32_cast": Fault("convs.5", "float32"),
    "strides_of_pool": Fault("convs.6", "strides|padding"),
    "global_sum": Fault("(output)", "times|the mean over .* the sum over"),
}
