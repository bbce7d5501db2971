"""Convolution and pooling: PyTorch's own, and for float64 on a CPU a faster form. No twin of JAX's file."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# In float64 PyTorch copies the surroundings of every pixel to memory before it multiplies. Those of a few
# images stay in the processor's cache; with a whole batch, a step takes twice as long.
IMAGES_PER_CALL = 4
BY_PARTS = (torch.float64,)  # types whose convolutions are done so


def conv2d(x: Tensor, kernel: Tensor, bias: Tensor | None, pad: int) -> Tensor:
    """Stride-1 convolution: x (N, I, H, W), kernel (O, I, K, K), bias (O,) -> (N, O, H+2*pad-K+1, ...).

    With a kernel (I, 1, K, K) it is depthwise.
    """
    if x.dtype not in BY_PARTS or x.device.type != "cpu":
        return functional.conv2d(x, kernel, bias, padding=pad, groups=_groups(x, kernel))
    y = conv2d_by_parts(x, kernel, pad)
    return y if bias is None else y + bias[:, None, None]


def _groups(x: Tensor, kernel: Tensor) -> int:
    return x.shape[1] // kernel.shape[1]


@torch.library.custom_op("lockstep::conv2d", mutates_args=())
def conv2d_by_parts(x: Tensor, kernel: Tensor, pad: int) -> Tensor:
    """Stride-1 convolution, fast in float64 on CPUs: x (N, I, H, W), kernel (O, I, K, K) -> (N, O, ...).

    An operator of its own, because compiling a hundred small convolutions takes minutes.
    """
    kernel, parts = kernel.contiguous(), x.contiguous().split(IMAGES_PER_CALL)
    groups = _groups(x, kernel)
    return torch.cat([functional.conv2d(y, kernel, padding=pad, groups=groups) for y in parts]).contiguous()


@conv2d_by_parts.register_fake
def _(x: Tensor, kernel: Tensor, pad: int) -> Tensor:
    height, width = (size + 2 * pad - kernel.shape[-1] + 1 for size in x.shape[2:])
    return x.new_empty(len(x), len(kernel), height, width)


@torch.library.custom_op("lockstep::conv2d_backward", mutates_args=())
def _conv2d_backward(dy: Tensor, x: Tensor, kernel: Tensor, pad: int, with_dx: bool) -> tuple[Tensor, Tensor]:
    kernel = kernel.contiguous()
    dx, dkernel = [x.new_empty(0)], torch.zeros_like(kernel)
    for dy_part, part in zip(*(t.contiguous().split(IMAGES_PER_CALL) for t in (dy, x)), strict=True):
        # Stride, padding, dilation; not transposed.
        sizes = [1, 1], [pad, pad], [1, 1], False, [0, 0], _groups(x, kernel)
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


conv2d_by_parts.register_autograd(_differentiate, setup_context=_save)


def max_pool(x: Tensor) -> Tensor:
    """2x2 max pooling with stride 2: x (N, C, H, W) -> (N, C, H//2, W//2)."""
    return functional.max_pool2d(x, 2)


def avg_pool(x: Tensor) -> Tensor:
    """2x2 mean pooling with stride 2: x (N, C, H, W) -> (N, C, H//2, W//2)."""
    return functional.avg_pool2d(x, 2)
