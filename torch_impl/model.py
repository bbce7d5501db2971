"""The networks in PyTorch, built from their layer tables. Images are NCHW."""

from math import prod
from pathlib import Path

import torch
from torch import Tensor as Array
from torch import nn
from torch.nn import functional

from recipe.checkpoint import Tensors, find_checkpoint, load_checkpoint
from recipe.networks import Average, AvgPool, Conv, Dropout, Layer, MaxPool, Network, Norm, Relu, Shape
from recipe.random_numbers import keep_mask
from torch_impl.devices import Devices, select_devices
from torch_impl.kernels import avg_pool, conv2d, max_pool
from torch_impl.ops import batch_norm

State = dict[str, Array]  # arrays under the names of a checkpoint, such as conv1.weight


class ConvNet(nn.Module):
    """A network of `recipe.networks`; its modules have the table's layer names.

    Args:
        network: the layers.
        dropout: probability of dropping.
        devices: that share a batch.
    """

    def __init__(self, network: Network, dropout: float, devices: Devices):
        super().__init__()
        self.network = network
        self.dropout = dropout
        self.devices = devices
        for layer in network.layers:
            if (module := build_layer(layer, devices)) is not None:
                setattr(self, layer.name, module)
            if isinstance(layer.operation, Dropout) and dropout:
                # Compiled code reads numbers from memory in x's layout faster than it computes them.
                self.register_buffer(layer.name, number_elements(layer.out_shape), persistent=False)

    def forward(self, x: Array, dropout_keys: Array | None = None) -> Array:
        """Logits.

        Args:
            x: normalised images (N, 1, 28, 28), in the type to compute in.
            dropout_keys: int32 (dropout layers, 2), see `recipe.random_numbers.epoch_dropout_keys`.
                None: no dropout.

        Returns:
            (N, 10), at least float32.
        """
        dropouts = 0
        for layer in self.network.layers:
            operation = layer.operation
            if isinstance(operation, Conv | Norm):
                x = getattr(self, layer.owner)(x)
            elif isinstance(operation, Relu):
                x = functional.relu(x)
            elif isinstance(operation, MaxPool):
                x = max_pool(x)
            elif isinstance(operation, AvgPool):
                x = avg_pool(x)
            elif isinstance(operation, Average):
                x = x.to(torch.promote_types(x.dtype, torch.float32)).mean((2, 3), keepdim=True)
            elif isinstance(operation, Dropout):
                if dropout_keys is not None and self.dropout:
                    first = self.devices.index * len(x)
                    x = drop(x, self.dropout, dropout_keys[dropouts], getattr(self, layer.name), first)
                dropouts += 1
        return x.flatten(1)


def build_layer(layer: Layer, devices: Devices) -> nn.Module | None:
    """The module that holds a layer's own tensors; None for a layer without any."""
    channels = layer.in_shape[0]
    match layer.operation:
        case Conv(filters, kernel, pad, bias, None, depthwise):
            return Convolution(channels, filters, kernel, pad, bias, depthwise)
        case Norm(epsilon, momentum):
            return BatchNorm(channels, epsilon, momentum, devices)
    return None


class Convolution(nn.Conv2d):
    """Convolution in the type of what it is given, which may be less precise than the weights."""

    def __init__(self, channels: int, filters: int, kernel: int, pad: int, bias: bool, depthwise: bool):
        groups = channels if depthwise else 1
        super().__init__(channels, filters, kernel, padding=pad, bias=bias, groups=groups)
        self.pad = pad

    def forward(self, x: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(N, channels, H, W) -> (N, filters, H', W'), in x's type."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return conv2d(x, self.weight.to(x.dtype), bias, self.pad)


class BatchNorm(nn.Module):
    """Batch norm over the images of all devices, with ``nn.BatchNorm2d``'s tensors under the same names."""

    def __init__(self, channels: int, epsilon: float, momentum: float, devices: Devices):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.epsilon, self.momentum, self.devices = epsilon, momentum, devices

    def forward(self, x: Array) -> Array:
        """(N, channels, H, W), normalised over all but the channels; statistics at least in float32."""
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if not self.training:
            return functional.batch_norm(x, mean, var, self.weight, self.bias, eps=self.epsilon)
        y, batch_mean, batch_var = batch_norm(x, self.weight, self.bias, self.epsilon, self.devices)
        count = self.devices.count * x.numel() // x.shape[1]
        unbiased = batch_var * (count / (count - 1))
        with torch.no_grad():
            mean.lerp_(batch_mean, self.momentum)
            var.lerp_(unbiased, self.momentum)
        return y


def number_elements(shape: Shape) -> Array:
    """The number of each element within its image (C, H, W): int32 (1, C, H, W)."""
    return torch.arange(prod(shape), dtype=torch.int32).view(1, *shape)


def drop(x: Array, rate: float, key: Array, element: Array, first: int) -> Array:
    """Dropout of (N, C, H, W) by the hash of `recipe.random_numbers.keep_mask`.

    The key is int32 (2,); ``element`` is from `number_elements`; ``first`` is the number of the first image.
    """
    image = torch.arange(len(x), dtype=torch.int32, device=x.device) + first
    keep = keep_mask(image[:, None, None, None] * element.numel() + element, key, rate)
    return torch.where(keep, x * (1 / (1 - rate)), 0)


def load_tensors(model: ConvNet, tensors: Tensors) -> None:
    """Set the parameters and running statistics."""
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})


def load_model(path: Path | str) -> ConvNet:
    """A trained network in evaluation mode, float32, on the CPU; averaged weights if the run has them.

    Its input is (x / 255 - `recipe.data.MEAN`) / `recipe.data.STD`, (N, 1, 28, 28).

    Args:
        path: a run's folder or its checkpoint, of either framework.

    Raises:
        UserError: it is missing or damaged.
    """
    checkpoint = load_checkpoint(find_checkpoint(Path(path)))
    model = ConvNet(checkpoint.network, 0.0, select_devices("cpu"))
    load_tensors(model, {name: tensor.astype("float32") for name, tensor in checkpoint.model.items()})
    return model.eval()
