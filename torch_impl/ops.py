"""Convolution that is fast in float64; batch normalisation over several devices, as exact as it can be.

PyTorch's own batch norm knows only one device (``nn.SyncBatchNorm`` works on GPUs alone), and on CPUs it adds
the 100,000 numbers of a channel one by one. In float64 that rounds a hundred times worse than here.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from torch_impl.devices import Devices

# In float64 PyTorch copies the surroundings of every pixel to memory before it multiplies. Those of a few
# images stay in the processor's cache; with a whole batch, a step takes twice as long.
IMAGES_PER_CALL = 4


@torch.library.custom_op("lockstep::conv2d", mutates_args=())
def conv2d(x: Tensor, kernel: Tensor, pad: int) -> Tensor:
    """Stride-1 convolution, fast in float64 on CPUs: x (N, I, H, W), kernel (O, I, K, K) -> (N, O, ...).

    An operator of its own, because compiling a hundred small convolutions takes minutes.
    """
    kernel, parts = kernel.contiguous(), x.contiguous().split(IMAGES_PER_CALL)
    return torch.cat([functional.conv2d(part, kernel, padding=pad) for part in parts]).contiguous()


@conv2d.register_fake
def _(x: Tensor, kernel: Tensor, pad: int) -> Tensor:
    height, width = (size + 2 * pad - kernel.shape[-1] + 1 for size in x.shape[2:])
    return x.new_empty(len(x), len(kernel), height, width)


@torch.library.custom_op("lockstep::conv2d_backward", mutates_args=())
def _conv2d_backward(dy: Tensor, x: Tensor, kernel: Tensor, pad: int, with_dx: bool) -> tuple[Tensor, Tensor]:
    kernel = kernel.contiguous()
    dx, dkernel = [x.new_empty(0)], torch.zeros_like(kernel)
    for dy_part, part in zip(*(t.contiguous().split(IMAGES_PER_CALL) for t in (dy, x)), strict=True):
        sizes = [1, 1], [pad, pad], [1, 1], False, [0, 0], 1  # stride, padding, dilation; not transposed
        wanted = [with_dx, True, False]
        grads = torch.ops.aten.convolution_backward(dy_part, part, kernel, None, *sizes, wanted)
        dx += [grads[0]] if with_dx else []
        dkernel += grads[1]
    return torch.cat(dx).contiguous(), dkernel


@_conv2d_backward.register_fake
def _(dy: Tensor, x: Tensor, kernel: Tensor, pad: int, with_dx: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if with_dx else 0), kernel.new_empty(kernel.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, kernel, ctx.pad = inputs
    ctx.save_for_backward(x, kernel)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, None]:
    with_dx = ctx.needs_input_grad[0]
    dx, dkernel = _conv2d_backward(dy, *ctx.saved_tensors, ctx.pad, with_dx)
    return dx if with_dx else None, dkernel, None


conv2d.register_autograd(_differentiate, setup_context=_save)


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, devices: Devices
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise x (N, C, H, W) by its batch statistics; return y, mean (C,), biased variance (C,).

    The batch is that of all devices. x and y may be less precise than the weights, the statistics are not.
    Mean and variance are meant for running averages: no gradient flows back through them.
    """
    return _BatchNorm.apply(x, weight, bias, epsilon, devices)  # pyright: ignore[reportReturnType]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, epsilon: float, devices: Devices):
        x = input.to(weight.dtype)
        mean = _batch_mean(x, devices)
        var = _batch_mean((x - _per_channel(mean)).square(), devices)
        inv_std = (var + epsilon).rsqrt()
        y = (x - _per_channel(mean)) * _per_channel(inv_std * weight) + _per_channel(bias)
        ctx.save_for_backward(input, mean, inv_std, weight)
        ctx.mark_non_differentiable(mean, var)
        ctx.devices = devices
        # PyTorch 2.11 compiles a wrong gradient of what ``to`` gives back unchanged (its issue 180642).
        return y if y.dtype == input.dtype else y.to(input.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        # Ioffe & Szegedy 2015, section 3, with the sums over the batch taken once.
        input, mean, inv_std, weight = ctx.saved_tensors
        centred, dy = input.to(weight.dtype) - _per_channel(mean), grad.to(weight.dtype)
        dbias, dweight = _channel_sum(dy), _channel_sum(dy * centred) * inv_std
        pixels = ctx.devices.count * dy.numel() // len(mean)
        mean_dy, mean_dy_x = ctx.devices.sum(torch.stack([dbias, dweight])) / pixels
        dx = dy - _per_channel(mean_dy) - centred * _per_channel(inv_std * mean_dy_x)
        return (_per_channel(weight * inv_std) * dx).to(grad.dtype), dweight, dbias, None, None


def _per_channel(x: Tensor) -> Tensor:
    """(C,) in the shape in which it meets (N, C, H, W)."""
    return x[:, None, None]


def _batch_mean(x: Tensor, devices: Devices) -> Tensor:
    """Mean over the images of all devices: (N, C, H, W) -> (C,)."""
    return devices.sum(_channel_sum(x)) / (devices.count * x.numel() // x.shape[1])


def _channel_sum(x: Tensor) -> Tensor:
    """Sum over all axes but the channels: (N, C, H, W) -> (C,); each image first, which is more exact."""
    return x.sum((2, 3)).sum(0)
