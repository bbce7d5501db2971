"""Our operations against PyTorch's, values and gradients, where their definitions could differ.

float64, so that 1e-12 leaves room for the order of sums and for nothing else. Float32 takes other ways
through a convolution: the same to 1e-5, a hundred times its rounding, since thousands of numbers are summed.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

import torch_impl.kernels
import torch_impl.ops
from jax_impl import kernels, ops
from tests.helpers import DEVICES

BOUND = 1e-12


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def to_nchw(x: np.ndarray) -> np.ndarray:
    """NHWC to NCHW and HWIO to OIHW: what PyTorch has. Vectors stay."""
    return x if x.ndim < 4 else x.transpose((0, 3, 1, 2) if x.shape[1] == x.shape[2] > 6 else (3, 2, 0, 1))


def from_nchw(x: np.ndarray) -> np.ndarray:
    return x if x.ndim < 4 else x.transpose((0, 2, 3, 1) if x.shape[2] > 6 else (2, 3, 1, 0))


def by_torch(function: Callable, arrays: Sequence[np.ndarray], upstream: np.ndarray) -> list[np.ndarray]:
    """The result of a function and the gradients of its inputs; arrays in NHWC and HWIO."""
    inputs = [torch.from_numpy(np.ascontiguousarray(to_nchw(x))).requires_grad_() for x in arrays]
    y = function(*inputs)
    y = y[0] if isinstance(y, tuple) else y
    y.backward(torch.from_numpy(np.ascontiguousarray(upstream.transpose(0, 3, 1, 2))))
    result = y.detach().numpy().transpose(0, 2, 3, 1)
    return [result, *(from_nchw(x.grad.numpy()) for x in inputs)]  # pyright: ignore


def by_jax(function: Callable, arrays: Sequence[np.ndarray], upstream: np.ndarray) -> list[np.ndarray]:
    def first(*inputs):
        y = function(*inputs)
        return y[0] if isinstance(y, tuple) else y

    y, pull = jax.vjp(first, *map(jnp.asarray, arrays))
    return [np.asarray(each) for each in (y, *pull(jnp.asarray(upstream)))]


def check(ours: list[np.ndarray], expected: list[np.ndarray], bound: float = BOUND) -> None:
    for found, right in zip(ours, expected, strict=True):
        largest = max(1, np.abs(right).max())
        np.testing.assert_allclose(found, right, rtol=0, atol=bound * largest)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", BOUND), ("float32", 1e-5)])
@pytest.mark.parametrize(
    ("size", "pad", "channels", "filters", "groups"),
    [
        (3, 0, 1, 8, 1),
        (3, 1, 16, 8, 1),
        (1, 0, 16, 10, 1),
        (5, 2, 8, 16, 1),
        (3, 1, 10, 10, 10),
        (3, 0, 6, 6, 6),
    ],
)
def test_convolution(size, pad, channels, filters, groups, dtype, bound, rng):
    side = 10 + 2 * pad - size + 1
    shapes = (40, 10, 10, channels), (size, size, channels // groups, filters), (40, side, side, filters)
    x, kernel, upstream = (rng.normal(size=shape).astype(dtype) for shape in shapes)

    def convolve(x, kernel):
        return kernels.conv2d(x, kernel.transpose(3, 2, 0, 1), None, pad, on_cpu=True)

    ours = by_jax(convolve, (x, kernel), upstream)
    assert {array.dtype for array in ours} == {np.dtype(dtype)}
    exact = [array.astype(np.float64) for array in (x, kernel, upstream)]

    def textbook(x, kernel):
        return functional.conv2d(x, kernel, padding=pad, groups=groups)

    expected = by_torch(textbook, exact[:2], exact[2])
    check(ours, expected, bound)
    if dtype == "float64":
        ours = by_torch(lambda *inputs: torch_impl.kernels.conv2d(*inputs, None, pad), (x, kernel), upstream)
        check(ours, expected)


@pytest.mark.parametrize("images", [1, 4, 6])
def test_convolution_of_few_images_at_a_time_in_pytorch(images):
    x, kernel = torch.randn(images, 3, 9, 9), torch.randn(5, 3, 3, 3, requires_grad=True)
    for with_dx in (True, False):
        x.requires_grad_(with_dx)
        torch_impl.kernels.conv2d_by_parts(x, kernel, 1).sum().backward()
        assert (x.grad is not None) == with_dx
        x.grad = None
        torch.library.opcheck(torch_impl.kernels.conv2d_by_parts, (x, kernel, 1))


@pytest.mark.parametrize("side", [8, 7])
@pytest.mark.parametrize("name", ["max", "avg"])
def test_pools(name, side, rng):
    x = rng.integers(0, 3, (5, side, side, 4)).astype(float)  # three values only: ties everywhere
    upstream = rng.normal(size=(5, side // 2, side // 2, 4))
    expected = by_torch(lambda x: getattr(functional, f"{name}_pool2d")(x, 2), [x], upstream)
    check(by_jax(getattr(kernels, f"{name}_pool"), [x], upstream), expected)


@pytest.mark.parametrize("offset", [0.0, 1e4])  # at 1e4, E[x^2] - E[x]^2 would lose eight digits
def test_batch_norm(offset, rng):
    x, upstream = rng.normal(size=(2, 6, 7, 7, 8))
    arrays = (x + offset, *rng.normal(size=(2, 8)))

    def textbook(x, weight, bias):
        return functional.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)

    expected = by_torch(textbook, arrays, upstream)
    bound = 10 * BOUND * max(offset, 1)  # the input itself has four digits fewer after the point
    devices = {name: DEVICES[name].select_devices("cpu") for name in DEVICES}
    check(
        by_torch(lambda *a: torch_impl.ops.batch_norm(*a, 1e-5, devices["torch"]), arrays, upstream),
        expected,
        bound,
    )
    check(by_jax(lambda *a: ops.batch_norm(*a, 1e-5, devices["jax"]), arrays, upstream), expected, bound)
    _, mean, variance = ops.batch_norm(*map(jnp.asarray, arrays), 1e-5, devices["jax"])
    np.testing.assert_allclose(mean, arrays[0].mean((0, 1, 2)), rtol=BOUND)
    np.testing.assert_allclose(variance, arrays[0].var((0, 1, 2)), rtol=1e-11)
