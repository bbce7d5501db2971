"""The published network of 9,954 parameters in plain PyTorch and plain Flax, in train mode."""

import jax
import jax.numpy as jnp
from flax import nnx
from torch import nn

from tests.pairs import Fault, TorchBatchNorm, images, randomise

CHANNELS = ((1, 8, 3, True), (8, 16, 3, True), (16, 8, 1, False), (8, 16, 3, True), (16, 16, 3, True),
            (16, 32, 3, False), (32, 10, 1, False))  # fmt: skip


def torch_model(seed=0):
    layers = []
    for index, (inputs, outputs, size, norm) in enumerate(CHANNELS):
        layers.append(nn.Conv2d(inputs, outputs, size))
        if norm:
            layers += [nn.ReLU(inplace=True), nn.BatchNorm2d(outputs)]
        if index in (2, 4):
            layers += [nn.MaxPool2d(2), nn.Dropout(0.3)]
    return randomise(nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten()), seed).train()


class Net(nnx.Module):
    def __init__(self, fault, rngs):
        self.fault = fault
        norm = nnx.BatchNorm if fault == "biased_running_variance" else TorchBatchNorm
        self.convs, self.norms = nnx.List([]), nnx.List([])
        for index, (inputs, outputs, size, with_norm) in enumerate(CHANNELS):
            padding = "SAME" if (index, fault) == (3, "same_for_valid") else "VALID"
            bias = (index, fault) != (2, "no_bias")
            self.convs.append(
                nnx.Conv(inputs, outputs, (size, size), padding=padding, use_bias=bias, rngs=rngs)
            )
            if with_norm:
                momentum = {"momentum_swapped": 0.1, "default_momentum": 0.99}.get(fault, 0.9)
                epsilon = 1e-3 if (index, fault) == (1, "norm_epsilon") else 1e-5
                self.norms.append(norm(outputs, momentum=momentum, epsilon=epsilon, rngs=rngs))
        self.dropout = nnx.Dropout(0.5 if fault == "dropout_rate" else 0.3, rngs=rngs)
        self.dropout2 = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        norms = iter(self.norms)
        for index, conv in enumerate(self.convs):
            x = conv(x)
            if CHANNELS[index][3]:
                norm = next(norms)
                if self.fault == "norm_before_relu" and index == 3:
                    x = nnx.relu(norm(x))
                elif self.fault == "maximum_for_relu" and index == 1:
                    x = norm(jnp.maximum(x, 0.0) if index else nnx.relu(x))
                elif self.fault == "relu_missing" and index == 4:
                    x = norm(x)
                elif self.fault == "frozen_statistics" and index == 1:
                    x = norm(nnx.relu(x), use_running_average=True)
                elif self.fault == "stop_gradient" and index == 1:
                    x = norm(jax.lax.stop_gradient(nnx.relu(x)))
                else:
                    x = norm(nnx.relu(x))
            if index in (2, 4):
                pool = nnx.avg_pool if self.fault == "average_pool" and index == 2 else nnx.max_pool
                x = (self.dropout if index == 2 else self.dropout2)(pool(x, (2, 2), strides=(2, 2)))
        return x.max((1, 2)) if self.fault == "global_maximum" else x.mean((1, 2))


def flax_model(fault=""):
    return Net(fault, nnx.Rngs(0))


def inputs(rng):
    return images(rng, 4, 1, 28, 28)


FAULTS = {
    "same_for_valid": Fault("9", r"padding \(\(0, 0\), \(0, 0\)\)"),
    "no_bias": Fault("6", r"leaves out the parameter 6\.bias"),
    "momentum_swapped": Fault("2", r"is 0\.[19] in the port, 0\.[19] in the reference"),
    "default_momentum": Fault("2", r"is 0\.(99|01) in the port, 0\.[19] in the reference"),
    "biased_running_variance": Fault("2", "the variance is biased"),
    "norm_epsilon": Fault("5", "epsilon is 0.001 in the port, 1e-05"),
    "frozen_statistics": Fault("5", "statistics|the variance by n over"),
    "dropout_rate": Fault("8", "dropout"),
    "norm_before_relu": Fault("11", "relu"),
    "relu_missing": Fault("14", "relu"),
    "average_pool": Fault("8", "maximum|average|pool"),
    "global_maximum": Fault("(output)", "the mean over .* the maximum over"),
    "stop_gradient": Fault("3", "stop_gradient"),
}
