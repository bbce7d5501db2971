"""Batch normalisation over the images of several devices, and as exact as float64 can be.

PyTorch's own knows only one device (``nn.SyncBatchNorm`` works on GPUs alone), and on CPUs it adds the
100,000 numbers of a channel one by one. In float64 that rounds a hundred times worse than here.
"""

from typing import Any

import torch
from torch import Tensor

from torch_impl.devices import count, sum_over_devices


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise x (N, C, H, W) by its batch statistics; return y, mean (C,), biased variance (C,).

    The batch is that of all devices. x and y may be less precise than the weights, the statistics are not.
    Mean and variance are meant for running averages: no gradient flows back through them.
    """
    return _BatchNorm.apply(x, weight, bias, epsilon)  # pyright: ignore[reportReturnType]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, epsilon: float):
        x = input.to(weight.dtype)
        mean = _batch_mean(x)
        var = _batch_mean((x - _per_channel(mean)).square())
        inv_std = (var + epsilon).rsqrt()
        y = (x - _per_channel(mean)) * _per_channel(inv_std * weight) + _per_channel(bias)
        ctx.save_for_backward(input, mean, inv_std, weight)
        ctx.mark_non_differentiable(mean, var)
        return y.to(input.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        # Ioffe & Szegedy 2015, section 3, with the sums over the batch taken once.
        input, mean, inv_std, weight = ctx.saved_tensors
        centred, dy = input.to(weight.dtype) - _per_channel(mean), grad.to(weight.dtype)
        dbias, dweight = _channel_sum(dy), _channel_sum(dy * centred) * inv_std
        pixels = count() * dy.numel() // len(mean)
        mean_dy, mean_dy_x = sum_over_devices(torch.stack([dbias, dweight])) / pixels
        dx = dy - _per_channel(mean_dy) - centred * _per_channel(inv_std * mean_dy_x)
        return (_per_channel(weight * inv_std) * dx).to(grad.dtype), dweight, dbias, None


def _per_channel(x: Tensor) -> Tensor:
    """(C,) in the shape in which it meets (N, C, H, W)."""
    return x[:, None, None]


def _batch_mean(x: Tensor) -> Tensor:
    """Mean over the images of all devices: (N, C, H, W) -> (C,)."""
    return sum_over_devices(_channel_sum(x)) / (count() * x.numel() // x.shape[1])


def _channel_sum(x: Tensor) -> Tensor:
    """Sum over all axes but the channels: (N, C, H, W) -> (C,); each image first, which is more exact."""
    return x.sum((2, 3)).sum(0)
