"""The grid that makes two float64 runs equal to the bit: ``--precision bitwise``.

Two programs that add the same numbers in another order differ a little after a training step. If every number
of the state is then rounded to a multiple of a grid's width, both programs have the same number, unless it
lay just between two multiples. The next step starts from equal bits again, so nothing accumulates. The whole
state is rounded: parameters, running statistics, averages and momentum, after every step and once before the
first.

The coarser the grid, the fewer roundings part, but changes of less than half its width are lost. After a step
the momentum differs by about 1e-16, the rest by 1e-18 to 1e-17. The momentum can bear a coarser grid, because
the learning rate and the sum over steps come after it. docs/lockstep.md has the measurements.
"""

from typing import Any

Array = Any  # of NumPy, PyTorch or JAX

STATE = 2.0**20  # multiples per unit, for parameters, running statistics and averages
MOMENTUM = 2.0**16


def round_to_grid(array: Array, grid: float) -> Array:
    """The nearest multiples of 1 / grid, halves to even; exact, because the grid is a power of two."""
    return (array * grid).round() / grid
