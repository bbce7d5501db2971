"""Our operations against PyTorch's, values and gradients, where their definitions could differ.

float64, so that 1e-12 leaves room for the order of sums and for nothing else. Float32 takes other ways
through a convolution: the same to 1e-5, a hundred times its rounding, since thousands of numbers are summed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

import torch_impl.ops
from jax_impl import ops

BOUND = 1e-12


@pytest.fixture(autouse=True)
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).requires_grad_()


def from_torch(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def assert_near(found, expected, bound=BOUND) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        np.asarray(found), expected, rtol=0, atol=bound * max(1, np.abs(expected).max())
    )


def convolve_by_torch(x, kernel, pad, upstream):
    """The result and both gradients by PyTorch's own convolution, in NHWC and HWIO."""
    x_torch = to_torch(x)
    kernel_torch = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    y = functional.conv2d(x_torch, kernel_torch, padding=pad)
    y.backward(to_torch(upstream).detach())
    return from_torch(y), from_torch(x_torch.grad), kernel_torch.grad.numpy().transpose(2, 3, 1, 0)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", BOUND), ("float32", 1e-5)])
@pytest.mark.parametrize(("size", "pad"), [(3, 0), (3, 1), (1, 0), (5, 2)])
@pytest.mark.parametrize(("channels", "filters"), [(1, 8), (8, 16), (16, 10)])
def test_convolution(size, pad, channels, filters, dtype, bound, rng):
    x = rng.normal(size=(40, 9, 9, channels)).astype(dtype)  # float32 sums weight gradients of 16 images
    kernel = rng.normal(size=(size, size, channels, filters)).astype(dtype)
    y, pull = jax.vjp(lambda x, kernel: ops.conv2d(x, kernel, pad), jnp.asarray(x), jnp.asarray(kernel))
    upstream = rng.normal(size=y.shape).astype(dtype)
    expected = convolve_by_torch(
        *(a.astype(np.float64) for a in (x, kernel)), pad, upstream.astype(np.float64)
    )
    for ours, theirs in zip((y, *pull(jnp.asarray(upstream))), expected, strict=True):
        assert ours.dtype == dtype
        assert_near(ours, theirs, bound)


@pytest.mark.parametrize("images", [1, 4, 6])
@pytest.mark.parametrize("with_dx", [True, False])
def test_convolution_of_few_images_at_a_time_in_pytorch(images, with_dx, rng):
    x, kernel = rng.normal(size=(images, 9, 9, 3)), rng.normal(size=(3, 3, 3, 5))
    upstream = rng.normal(size=(images, 9, 9, 5))
    expected = convolve_by_torch(x, kernel, 1, upstream)
    x_torch = to_torch(x).detach().requires_grad_(with_dx)
    kernel_torch = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
    y = torch_impl.ops.conv2d(x_torch, kernel_torch, 1)
    y.backward(to_torch(upstream).detach())
    assert_near(from_torch(y), expected[0])
    assert (x_torch.grad is not None) == with_dx
    if with_dx:
        assert_near(from_torch(x_torch.grad), expected[1])
    assert_near(kernel_torch.grad.numpy().transpose(2, 3, 1, 0), expected[2])
    torch.library.opcheck(torch_impl.ops.conv2d, (x_torch, kernel_torch, 1))


@pytest.mark.parametrize("side", [8, 7])
def test_max_pool_with_ties(side, rng):
    x = rng.integers(0, 3, (5, side, side, 4)).astype(float)  # three values only: ties everywhere
    ours, pull = jax.vjp(ops.max_pool, jnp.asarray(x))
    x_torch = to_torch(x)
    theirs = functional.max_pool2d(x_torch, 2)
    assert_near(ours, from_torch(theirs))
    upstream = rng.normal(size=ours.shape)
    theirs.backward(to_torch(upstream).detach())
    assert_near(pull(jnp.asarray(upstream))[0], from_torch(x_torch.grad))


@pytest.mark.parametrize("side", [8, 7])
def test_avg_pool(side, rng):
    x = rng.normal(size=(5, side, side, 4))
    ours, pull = jax.vjp(ops.avg_pool, jnp.asarray(x))
    x_torch = to_torch(x)
    theirs = functional.avg_pool2d(x_torch, 2)
    assert_near(ours, from_torch(theirs))
    upstream = rng.normal(size=ours.shape)
    theirs.backward(to_torch(upstream).detach())
    assert_near(pull(jnp.asarray(upstream))[0], from_torch(x_torch.grad))


@pytest.mark.parametrize("offset", [0.0, 1e4])  # at 1e4, E[x^2] - E[x]^2 would lose eight digits
def test_batch_norm(offset, rng):
    x = rng.normal(size=(6, 5, 5, 8)) + offset
    weight, bias = rng.normal(size=8), rng.normal(size=8)
    (ours, mean, variance), pull = jax.vjp(
        lambda *inputs: ops.batch_norm(*inputs, 1e-5), *map(jnp.asarray, (x, weight, bias))
    )
    inputs = [to_torch(x), torch.from_numpy(weight).requires_grad_(), torch.from_numpy(bias).requires_grad_()]
    theirs = functional.batch_norm(inputs[0], None, None, inputs[1], inputs[2], training=True, eps=1e-5)
    bound = 1 if offset == 0 else 1e4  # the input itself has four digits fewer after the point
    np.testing.assert_allclose(ours, from_torch(theirs), rtol=0, atol=BOUND * bound * 10)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=BOUND)
    np.testing.assert_allclose(variance, x.var((0, 1, 2)), rtol=1e-11)
    upstream = rng.normal(size=ours.shape)
    theirs.backward(to_torch(upstream).detach())
    zero = jnp.zeros_like(mean)
    for gradient, expected in zip(
        pull((jnp.asarray(upstream), zero, zero)),
        (from_torch(inputs[0].grad), inputs[1].grad.numpy(), inputs[2].grad.numpy()),
        strict=True,
    ):
        np.testing.assert_allclose(
            gradient, expected, rtol=0, atol=1e-11 * bound * max(1, np.abs(expected).max())
        )


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_batch_norm_of_pytorch(offset, rng):
    x, weight, bias, upstream = (
        torch.from_numpy(array).requires_grad_()
        for array in (
            rng.normal(size=(6, 8, 5, 5)) + offset,
            *rng.normal(size=(2, 8)),
            rng.normal(size=(6, 8, 5, 5)),
        )
    )
    ours, mean, variance = torch_impl.ops.batch_norm(x, weight, bias, 1e-5)
    theirs = functional.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)
    bound = 1 if offset == 0 else 1e4
    torch.testing.assert_close(ours, theirs, rtol=0, atol=BOUND * bound * 10)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)), rtol=BOUND, atol=0)
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0), rtol=1e-11, atol=0)
    assert not mean.requires_grad
    inputs = (x, weight, bias)
    gradients = (torch.autograd.grad(y, inputs, upstream) for y in (ours, theirs))
    for gradient, expected in zip(*gradients, strict=True):
        largest = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-11 * bound * largest)
