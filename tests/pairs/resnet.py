"""A residual network with stride 2, batch norm in eval mode and a linear head on a flattened map."""

import jax
import jax.numpy as jnp
from flax import nnx
from torch import nn

from tests.pairs import Fault, images, randomise


class TorchBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        return self.relu(y)


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = TorchBlock(8, 8, 1), TorchBlock(8, 16, 2)
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layer2(self.layer1(x)).flatten(1))


def torch_model(seed=0):
    return randomise(TorchNet(), seed).eval()


class Block(nnx.Module):
    def __init__(self, inputs, outputs, stride, fault, rngs):
        self.fault = fault
        pads = "SAME" if fault == "same_at_stride_2" and stride == 2 else ((1, 1), (1, 1))
        self.conv1 = nnx.Conv(inputs, outputs, (3, 3), stride, padding=pads, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(outputs, rngs=rngs)
        self.conv2 = nnx.Conv(outputs, outputs, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(outputs, rngs=rngs)
        epsilon = 1e-3 if fault == "shortcut_epsilon" else 1e-5
        project = nnx.Conv(inputs, outputs, (1, 1), stride, padding="VALID", use_bias=False, rngs=rngs)
        norm = nnx.BatchNorm(outputs, rngs=rngs, epsilon=epsilon)
        self.downsample = nnx.Sequential(project, norm) if stride > 1 else None

    def __call__(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.fault == "shortcut_detached":
            shortcut = jax.lax.stop_gradient(shortcut)
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        if self.downsample is None:
            if self.fault == "no_relu_after_addition":
                return y + shortcut
            if self.fault == "relu_before_addition":
                return nnx.relu(y) + shortcut
            if self.fault == "no_shortcut":
                return nnx.relu(y)
            if self.fault == "shortcut_twice":
                return nnx.relu(y + 2 * shortcut)
        return nnx.relu(y + shortcut)


class Net(nnx.Module):
    def __init__(self, fault, rngs):
        self.fault = fault
        pads = "SAME" if fault == "same_in_stem" else ((3, 3), (3, 3))
        self.stem = nnx.Conv(3, 8, (7, 7), 2, padding=pads, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.blocks = nnx.List([Block(8, 8, 1, fault, rngs), Block(8, 16, 2, fault, rngs)])
        self.head = nnx.Linear(16 * 4 * 4, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        pads = "SAME" if self.fault == "same_in_pool" else ((1, 1), (1, 1))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=pads)
        for block in self.blocks:
            x = block(x)
        if self.fault != "flattened_as_nhwc":
            x = jnp.transpose(x, (0, 3, 1, 2))
        return self.head(x.reshape(x.shape[0], -1))


def flax_model(fault=""):
    return Net(fault, nnx.Rngs(0))


def inputs(rng):
    return images(rng, 2, 3, 32, 32)


FAULTS = {
    "same_at_stride_2": Fault("layer2.conv1", r"padding \(\(1, 1\), \(1, 1\)\)"),
    "same_in_stem": Fault("conv1", r"padding \(\(3, 3\), \(3, 3\)\)"),
    "same_in_pool": Fault("layer1.conv1", "padding"),
    "shortcut_epsilon": Fault("layer2.downsample.1", "epsilon is 0.001 in the port, 1e-05"),
    "no_relu_after_addition": Fault("layer2.conv1", "relu"),
    "relu_before_addition": Fault("layer2.conv1", "relu"),
    "no_shortcut": Fault("layer2.conv1", "leaves out"),
    "shortcut_twice": Fault("layer2.conv1", "a factor is 2|only the port adds"),
    "shortcut_detached": Fault("layer2.downsample.1", "stop_gradient"),
    "flattened_as_nhwc": Fault("fc", r"(takes|merges) .* order of axes \(0, 2, 3, 1\)"),
}
