"""Convolution and pooling, written so that XLA's CPU backend is fast. No twin of PyTorch's file.

Arrays are NHWC; kernels come as a checkpoint has them, OIHW, and are HWIO within. Values and gradients are
the textbook ones, to rounding; only the order of work differs. python -m benchmarks.training times them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# XLA hands a convolution to its fast kernel only in exactly this order of dimensions. At the top
# level of a program it reorders the others itself, but not inside `lax.scan`: there the gradients
# that autodiff writes fall to a scalar loop, and the whole step is over ten times slower.
NHWC = ("NHWC", "HWIO", "NHWC")

# Images per partial weight gradient. With more than 16 XLA picks a kernel (YNNPACK's) that uses one core.
IMAGES_PER_SUM = 16

IMAGES_PER_LOOP = 16  # in `compute_once`
BY_IMAGE = (jnp.float64,)  # types whose convolutions are done image by image on a CPU


def conv2d(x: Array, kernel: Array, bias: Array | None, pad: int, on_cpu: bool) -> Array:
    """Stride-1 convolution: x (N, H, W, I), kernel (O, I, K, K), bias (O,) -> (N, H+2*pad-K+1, ..., O).

    With a kernel (I, 1, K, K) it is depthwise.
    """
    kernel = kernel.transpose(2, 3, 1, 0)
    if on_cpu:
        y: Any = _conv2d_cpu(x, kernel, pad)
    elif kernel.shape[0] == 1 and pad == 0:
        y = x @ kernel[0, 0]
    else:  # GPUs are fastest with cuDNN's
        y = _conv(x, kernel, pad)
    return y if bias is None else y + bias


def _conv(x: Array, kernel: Array, pad: int, strides: tuple[int, int] = (1, 1)) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=strides,
        padding=[(pad, pad)] * 2,
        dimension_numbers=NHWC,
        feature_group_count=x.shape[3] // kernel.shape[2],
        precision=lax.Precision.HIGHEST,  # no TF32 on GPUs
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv2d_cpu(x: Array, kernel: Array, pad: int) -> Array:
    size, _, channels_in, _ = kernel.shape
    if size == 1 and pad == 0:
        return x @ kernel[0, 0]
    if channels_in < x.shape[3]:  # depthwise; the loop keeps XLA from computing x anew for each place
        return lax.map(lambda image: _conv_by_places(image, kernel, pad), x)
    if channels_in == 1:  # too little work per pixel for a matrix product
        return _conv_by_places(x, kernel, pad)
    if x.dtype in BY_IMAGE:
        return _conv_by_image(x, kernel, pad)
    return _conv_by_pairs(x, kernel, pad)


def _conv_by_places(x: Array, kernel: Array, pad: int) -> Array:
    """The same of one channel, or of each by itself, as fused multiply-adds over the places of the kernel."""
    weights = kernel.reshape(-1, kernel.shape[3])
    places = [part * weight for part, weight in zip(_shifts(x, len(kernel), pad), weights, strict=True)]
    y: Any = sum(places[1:], places[0])
    return y


def _shifts(x: Array, size: int, pad: int) -> list[Array]:
    """What each place of a kernel sees: (..., H, W, I) -> size*size times (..., H+2*pad-size+1, ..., I)."""
    height, width = (n + 2 * pad - size + 1 for n in x.shape[-3:-1])
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 3) + ((pad, pad), (pad, pad), (0, 0)))
    return [x[..., i : i + height, j : j + width, :] for i in range(size) for j in range(size)]


def _conv_by_pairs(x: Array, kernel: Array, pad: int) -> Array:
    """The same with few output channels as a convolution to pairs of pixels, with twice as many channels.

    So a vector register is full, and the surroundings of a pair are gathered once.
    """
    size, _, channels_in, channels_out = kernel.shape
    width = x.shape[2] + 2 * pad - size + 1
    if channels_out > 8 or width % 2:
        return _conv(x, kernel, pad)
    pair = jnp.stack([jnp.pad(kernel, ((0, 0), (i, 1 - i), (0, 0), (0, 0))) for i in (0, 1)], axis=3)
    y = _conv(x, pair.reshape(size, size + 1, channels_in, -1), pad, (1, 2))
    return y.reshape(*y.shape[:2], width, channels_out)


def _conv_by_image(x: Array, kernel: Array, pad: int) -> Array:
    """The same as one matrix product for each image: XLA has no fast kernel for float64.

    The product's operand holds each pixel as often as a kernel has places; one image's stays in the cache.
    """
    size, _, _, channels_out = kernel.shape
    return lax.map(lambda image: _patches(image, size, pad) @ kernel.reshape(-1, channels_out), x)


def _patches(image: Array, size: int, pad: int) -> Array:
    """The surroundings of each pixel: (H, W, I) -> (H+2*pad-size+1, ..., size*size*I)."""
    return jnp.concatenate(_shifts(image, size, pad), axis=-1)


def _conv2d_fwd(x: Array, kernel: Array, pad: int) -> tuple[Array, tuple[Array, Array]]:
    return _conv2d_cpu(x, kernel, pad), (x, kernel)


def _conv2d_bwd(pad: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    size, _, channels_in, channels_out = kernel.shape
    if size == 1 and pad == 0:
        dkernel = x.reshape(-1, channels_in).T @ dy.reshape(-1, channels_out)
        return dy @ kernel[0, 0].T, dkernel[None, None]

    if channels_in < x.shape[3]:
        return _depthwise_gradients(x, kernel, pad, dy)

    back = kernel[::-1, ::-1].swapaxes(2, 3)
    if x.dtype in BY_IMAGE:

        def add(dkernel: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            patches, pixels = _patches(pair[0], size, pad), pair[1].reshape(-1, channels_out)
            return dkernel + patches.reshape(len(pixels), -1).T @ pixels, None

        dkernel, _ = lax.scan(add, jnp.zeros_like(kernel).reshape(-1, channels_out), (x, dy))
        return _conv_by_image(dy, back, size - 1 - pad), dkernel.reshape(kernel.shape)

    dx = _conv_by_pairs(dy, back, size - 1 - pad)

    # The weight gradient is a convolution too: input channels are its images, images its channels.
    # The barrier keeps XLA from recomputing what made x and dy inside every transpose.
    x, dy = lax.optimization_barrier((x, dy))
    slices = [slice(n, n + IMAGES_PER_SUM) for n in range(0, x.shape[0], IMAGES_PER_SUM)]
    parts = [_conv(x[part].transpose(3, 1, 2, 0), dy[part].transpose(1, 2, 0, 3), pad) for part in slices]
    parts = [part.astype(jnp.promote_types(x.dtype, jnp.float32)) for part in parts]
    return dx, sum(parts[1:], parts[0]).transpose(1, 2, 0, 3).astype(x.dtype)


def _depthwise_gradients(x: Array, kernel: Array, pad: int, dy: Array) -> tuple[Array, Array]:
    """What a depthwise convolution hands back to x and to its kernel, one image after the other.

    The kernel's sums run over whole images first, with a row's pixels and channels as one axis: XLA does that
    in full vectors, which a sum over pixels is not.
    """
    size, _, _, channels = kernel.shape
    height, width = dy.shape[1:3]
    back = kernel[::-1, ::-1]

    def step(sums: list[Array], pair: tuple[Array, Array]) -> tuple[list[Array], Array]:
        image, dimage = pair
        dx = _conv_by_places(dimage, back, size - 1 - pad)
        rows = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0))).reshape(len(image) + 2 * pad, -1)
        parts = [
            rows[i : i + height, j * channels : (j + width) * channels]
            for i in range(size)
            for j in range(size)
        ]
        drows = dimage.reshape(height, -1)
        return [total + part * drows for total, part in zip(sums, parts, strict=True)], dx

    zeros = jnp.zeros((height, width * channels), jnp.promote_types(x.dtype, jnp.float32))
    sums, dx = lax.scan(step, [zeros] * size**2, (x, dy))
    dkernel = jnp.stack(sums).reshape(size, size, 1, height * width, channels).sum(3)
    return dx, dkernel.astype(x.dtype)


_conv2d_cpu.defvjp(_conv2d_fwd, _conv2d_bwd)


def max_pool(x: Array) -> Array:
    """2x2 max pooling with stride 2: x (N, H, W, C) -> (N, H//2, W//2, C).

    A tie's gradient goes to the first maximum in scan order, as in PyTorch. The gradient of
    `lax.reduce_window` does the same 14 times slower; that of `jnp.maximum` would split it in halves.
    """
    height, width = (n // 2 * 2 for n in x.shape[1:3])
    return _max_pool(x[:, :height, :width])


@jax.custom_vjp
def _max_pool(x: Array) -> Array:
    return _max_pool_fwd(x)[0]


def _max_pool_fwd(x: Array) -> tuple[Array, Array]:
    a, b, c, d = (x[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    top, bottom = jnp.maximum(a, b), jnp.maximum(c, d)
    # Compared with each other and not with the result: XLA may have rounded that in another pass.
    number = jnp.where(top >= bottom, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
    return jnp.maximum(top, bottom), number.astype(jnp.int8)


def _max_pool_bwd(number: Array, dy: Array) -> tuple[Array]:
    numbers = jnp.arange(4, dtype=jnp.int8).reshape(2, 1, 2, 1)
    dx = jnp.where(number[:, :, None, :, None] == numbers, dy[:, :, None, :, None], 0)
    images, height, width, channels = dy.shape
    return (dx.reshape(images, 2 * height, 2 * width, channels),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


def compute_once(function: Callable[[Array], Array], images: Array, on_cpu: bool) -> Array:
    """``function`` of each image's number: images (N,) -> (N, ...).

    XLA's CPU backend computes cheap values again for every operation that reads them, but not a loop's.
    """
    if on_cpu:
        return lax.map(function, images, batch_size=IMAGES_PER_LOOP)
    return jax.vmap(function)(images)


def avg_pool(x: Array) -> Array:
    """2x2 mean pooling with stride 2: x (N, H, W, C) -> (N, H//2, W//2, C)."""
    height, width = (n // 2 for n in x.shape[1:3])
    blocks = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, -1)
    # Added up one by one, because XLA sums over the two axes slowly; like its sums at least in float32.
    blocks = blocks.astype(jnp.promote_types(x.dtype, jnp.float32))
    a, b, c, d = (blocks[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
    return ((a + b + c + d) / 4).astype(x.dtype)
