"""The networks and their training loop in PyTorch; the twin of ``jax_impl``."""

from recipe import start_program

start_program()
