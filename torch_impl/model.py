"""The networks in PyTorch, built from their layer tables. Images are NCHW."""

from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipe.chance import keep_mask
from recipe.checkpoint import Tensors
from recipe.networks import Average, Conv, Dropout, Layer, MaxPool, Network, Norm, Relu, Shape

BN_MOMENTUM, BN_EPSILON = 0.1, 1e-5  # PyTorch's defaults


class ConvNet(nn.Module):
    """A network of `recipe.networks`; its modules bear the table's layer names.

    Args:
        network: the layers.
        dropout: probability of dropping.
        seeds: how many networks to hold at once. Channels and tensors are then those of all of them, one seed
            after the other, and each convolution is grouped by seed: no seed meets another.
        products: compute convolutions by `convolve_by_products`.
    """

    def __init__(self, network: Network, dropout: float, seeds: int = 1, products: bool = False):
        super().__init__()
        self.network = network
        self.dropout = dropout
        self.seeds = seeds
        self.products = products
        for layer in network.layers:
            if (module := build_layer(layer, seeds)) is not None:
                self.add_module(layer.name, module)
            if isinstance(layer.operation, Dropout) and dropout:
                self.register_buffer(layer.name, number_elements(layer.out_shape), persistent=False)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits.

        Args:
            x: normalised images (N, 1, 28, 28), in the type to compute in; (N, seeds, 28, 28) where each seed
                has its own.
            keys: int32 (dropout layers, 2), see `recipe.chance.epoch_dropout_keys`; None: no dropout. Of many
                seeds (seeds, dropout layers, 2).

        Returns:
            (N, 10), of many seeds (N, seeds * 10); at least float32.
        """
        dropouts = 0
        if self.seeds > 1:
            x = x.expand(-1, self.seeds, -1, -1)
        for layer in self.network.layers:
            operation = layer.operation
            if isinstance(operation, Conv):
                x = (convolve_by_products if self.products else convolve)(getattr(self, layer.name), x)
            elif isinstance(operation, Norm):
                x = getattr(self, layer.name)(x)
            elif isinstance(operation, Relu):
                x = functional.relu(x)
            elif isinstance(operation, MaxPool):
                x = functional.max_pool2d(x, 2)
            elif isinstance(operation, Average):
                x = x.to(torch.promote_types(x.dtype, torch.float32)).mean((2, 3), keepdim=True)
            elif isinstance(operation, Dropout):
                if keys is not None and self.dropout:
                    x = drop(x, self.dropout, keys[..., dropouts, :], getattr(self, layer.name))
                dropouts += 1
        return x.flatten(1)


def build_layer(layer: Layer, seeds: int) -> nn.Module | None:
    """The module that holds a layer's tensors; None for a layer without any."""
    channels = seeds * layer.in_shape[0]
    match layer.operation:
        case Conv(filters, kernel, pad, bias):
            return nn.Conv2d(channels, seeds * filters, kernel, padding=pad, bias=bias, groups=seeds)
        case Norm():
            return nn.BatchNorm2d(channels, eps=BN_EPSILON, momentum=BN_MOMENTUM)
    return None


def convolve(module: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution in x's type, which may be less precise than the weights'."""
    bias = None if module.bias is None else module.bias.to(x.dtype)
    weight, padding = module.weight.to(x.dtype), cast(Any, module.padding)
    return functional.conv2d(x, weight, bias, padding=padding, groups=module.groups)


def convolve_by_products(module: nn.Conv2d, x: Tensor) -> Tensor:
    """The same as matrix products, one for each image and group: a GPU's library may be slow with groups."""
    size, pad = module.kernel_size[0], int(module.padding[0])
    x = functional.pad(x, [pad] * 4).unflatten(1, (module.groups, -1))
    height, width = (n - size + 1 for n in x.shape[-2:])
    shifted = [x[..., i : i + height, j : j + width] for i in range(size) for j in range(size)]
    patches = torch.stack(shifted, 3).flatten(2, 3).flatten(-2)  # (N, groups, C * size * size, H' * W')
    kernels = module.weight.to(x.dtype).reshape(module.groups, -1, patches.shape[2])
    y = (kernels @ patches).flatten(1, 2).unflatten(2, (height, width))
    return y if module.bias is None else y + module.bias.to(x.dtype)[:, None, None]


def number_elements(shape: Shape) -> Tensor:
    """The number of each element within its image: int32 (1, C, H, W)."""
    return torch.arange(prod(shape), dtype=torch.int32).view(1, *shape)


def drop(x: Tensor, rate: float, key: Tensor, within: Tensor | None = None) -> Tensor:
    """Dropout of (N, C, H, W) by the hash of `recipe.chance.keep_mask`; of (N, seeds * C, H, W) by many keys.

    The key is int32 (2,), of many seeds (seeds, 2). ``within``, from `number_elements`, is only for speed:
    compiled code reads numbers faster from memory in x's layout than it works them out.
    """
    shape = x.shape
    if key.ndim == 2:
        x, key = x.unflatten(1, (len(key), -1)), key.T[..., None, None, None]
    if within is None:
        within = number_elements(tuple(x.shape[-3:])).to(x.device)
    image = torch.arange(len(x), dtype=torch.int32, device=x.device) * within.numel()
    element = image.view(-1, *[1] * (x.ndim - 1)) + within
    return torch.where(keep_mask(element, key, rate), x * (1 / (1 - rate)), 0).reshape(shape)


def load_tensors(model: ConvNet, tensors: Tensors, prefix: str = "") -> None:
    """Set parameters and statistics from canonical tensors; of many seeds, joined along their first axis."""
    state = {name: torch.from_numpy(tensors[prefix + name]) for name in _names(model.network)}
    model.load_state_dict(state, strict=False)  # all but PyTorch's own batch counters


def dump_tensors(model: ConvNet, prefix: str = "") -> Tensors:
    """Parameters and statistics as canonical tensors; of many seeds, joined along their first axis."""
    state = model.state_dict()
    return {prefix + name: state[name].numpy(force=True).copy() for name in _names(model.network)}


def _names(network: Network) -> list[str]:
    return [*network.parameters, *network.buffers]
