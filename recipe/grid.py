"""The grid that makes two float64 runs equal to the bit: ``--precision bitwise``.

Two programs that add the same numbers in another order differ by about 1e-17 after a training step. If every
number of the state is then rounded to a multiple of 2**-20, both programs have the same number, unless it lay
within 1e-17 of the middle between two multiples: about one number in 10**10. The next step starts from equal
bits again, so nothing accumulates. What is rounded is the whole state: parameters, running statistics,
momentum and averages, after every step and once before the first.
"""

from typing import Any

Array = Any  # of NumPy, PyTorch or JAX


def round_to_grid(array: Array, grid: float) -> Array:
    """The nearest multiples of 1 / grid, halves to even; exact, because the grid is a power of two."""
    return (array * grid).round() / grid
