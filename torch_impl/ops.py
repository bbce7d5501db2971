"""Batch normalisation over the images of all devices, as exact as it can be.

PyTorch's own knows only one device on CPUs (``nn.SyncBatchNorm`` works on GPUs alone), and adds the 100,000
numbers of a channel one by one there. In float64 that rounds a hundred times worse than here.
"""

from typing import Any

import torch
from torch import Tensor as Array

from torch_impl.devices import Devices


def batch_norm(
    x: Array, weight: Array, bias: Array, epsilon: float, devices: Devices
) -> tuple[Array, Array, Array]:
    """Normalise x (N, C, H, W) by its batch statistics; return y, mean (C,), biased variance (C,).

    The batch is that of all devices. x and y may be less precise than the weights, the statistics are not.
    Mean and variance are meant for running averages: no gradient flows back through them.
    """
    return _BatchNorm.apply(x, weight, bias, epsilon, devices)  # pyright: ignore[reportReturnType]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Array, weight: Array, bias: Array, epsilon: float, devices: Devices):
        x = given.to(weight.dtype)
        pixels = devices.count * x.numel() // x.shape[1]
        mean = devices.sum(_channel_sum(x)) / pixels  # first, because E[x^2] - E[x]^2 cancels
        var = devices.sum(_channel_sum((x - _lift(mean)).square())) / pixels
        inv_std = (var + epsilon).rsqrt()
        y = (x - _lift(mean)) * _lift(inv_std * weight) + _lift(bias)
        ctx.save_for_backward(given, mean, inv_std, weight)
        ctx.mark_non_differentiable(mean, var)
        ctx.devices = devices
        # PyTorch 2.11 compiles a wrong gradient of what ``to`` gives back unchanged (its issue 180642).
        return y if y.dtype == given.dtype else y.to(given.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Array, *_: Array):  # pyright: ignore[reportIncompatibleMethodOverride]
        # Ioffe & Szegedy 2015, section 3, with the sums over the batch taken once.
        given, mean, inv_std, weight = ctx.saved_tensors
        x, dy = given.to(weight.dtype) - _lift(mean), grad.to(weight.dtype)
        pixels = ctx.devices.count * x.numel() // x.shape[1]
        dbias, dweight = _channel_sum(dy), _channel_sum(dy * x) * inv_std
        mean_dy, mean_dy_x = ctx.devices.sum(torch.stack([dbias, dweight])) / pixels
        dx = dy - _lift(mean_dy) - x * _lift(inv_std * mean_dy_x)
        return (_lift(weight * inv_std) * dx).to(grad.dtype), dweight, dbias, None, None


def _lift(x: Array) -> Array:
    """(C,) in the shape in which it meets (N, C, H, W)."""
    return x[:, None, None]


def _channel_sum(x: Array) -> Array:
    """Sum over all axes but the channels: (N, C, H, W) -> (C,); each image first, which is more exact."""
    return x.sum((2, 3)).sum(0)
