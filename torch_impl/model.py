"""The networks in PyTorch, built from their layer tables. Images are NCHW."""

from math import prod
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipe.checkpoint import Tensors, find_checkpoint, load_checkpoint
from recipe.networks import Average, AvgPool, Conv, Dropout, Layer, MaxPool, Network, Norm, Relu, Shape
from recipe.random_numbers import keep_mask
from torch_impl.devices import Devices, select_devices
from torch_impl.ops import batch_norm, conv2d


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
                self.add_module(layer.name, module)
            if isinstance(layer.operation, Dropout) and dropout:
                # Compiled code reads numbers from memory in x's layout faster than it computes them.
                self.register_buffer(layer.name, number_elements(layer.out_shape), persistent=False)

    def forward(self, x: Tensor, dropout_keys: Tensor | None = None) -> Tensor:
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
            if isinstance(operation, Conv):
                x = convolve(getattr(self, layer.owner), x)
            elif isinstance(operation, Norm):
                x = getattr(self, layer.name)(x)
            elif isinstance(operation, Relu):
                x = functional.relu(x)
            elif isinstance(operation, MaxPool):
                x = functional.max_pool2d(x, 2)
            elif isinstance(operation, AvgPool):
                x = functional.avg_pool2d(x, 2)
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
        case Conv(filters, kernel, pad, bias, None):
            return nn.Conv2d(channels, filters, kernel, padding=pad, bias=bias)
        case Norm(epsilon, momentum):
            return BatchNorm(channels, epsilon, momentum, devices)
    return None


def convolve(module: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution in x's type, which may be less precise than the weights'."""
    kernel, pad = module.weight.to(x.dtype), cast(int, module.padding[0])
    bias = None if module.bias is None else module.bias.to(x.dtype)
    if x.dtype != torch.float64 or x.device.type != "cpu":
        return functional.conv2d(x, kernel, bias, padding=pad)
    y = conv2d(x, kernel, pad)
    return y if bias is None else y + bias[:, None, None]


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all devices."""

    def __init__(self, channels: int, epsilon: float, momentum: float, devices: Devices):
        super().__init__(channels, epsilon, momentum)
        self.devices = devices

    def forward(self, input: Tensor) -> Tensor:
        """(N, channels, H, W), normalised over all but the channels."""
        if not self.training or (self.devices.count == 1 and input.dtype != torch.float64):
            return super().forward(input)
        y, mean, variance = batch_norm(input, self.weight, self.bias, self.eps, self.devices)
        count = self.devices.count * input.numel() // self.num_features
        unbiased = variance * (count / (count - 1))
        with torch.no_grad():
            self.get_buffer("running_mean").lerp_(mean, cast(float, self.momentum))
            self.get_buffer("running_var").lerp_(unbiased, cast(float, self.momentum))
        return y


def number_elements(shape: Shape) -> Tensor:
    """The number of each element within its image (C, H, W): int32 (1, C, H, W)."""
    return torch.arange(prod(shape), dtype=torch.int32).view(1, *shape)


def drop(x: Tensor, rate: float, key: Tensor, element: Tensor, first: int) -> Tensor:
    """Dropout of (N, C, H, W) by the hash of `recipe.random_numbers.keep_mask`.

    The key is int32 (2,); ``element`` is from `number_elements`; ``first`` is the number of the first image.
    """
    image = torch.arange(len(x), dtype=torch.int32, device=x.device) + first
    keep = keep_mask(image[:, None, None, None] * element.numel() + element, key, rate)
    return torch.where(keep, x * (1 / (1 - rate)), 0)


def load_tensors(model: ConvNet, tensors: Tensors, prefix: str = "") -> None:
    """Set those parameters and running statistics that are among the canonical tensors."""
    state = {
        name: torch.from_numpy(tensors[prefix + name])
        for name in (*model.network.parameters, *model.network.buffers)
        if prefix + name in tensors
    }
    model.load_state_dict(state, strict=False)  # all but PyTorch's own batch counters


def dump_tensors(model: ConvNet, prefix: str = "") -> Tensors:
    """Parameters and running statistics as canonical tensors."""
    state = model.state_dict()
    return {
        prefix + name: state[name].numpy(force=True).copy()
        for name in (*model.network.parameters, *model.network.buffers)
    }


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
