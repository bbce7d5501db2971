"""The networks and their training loop in Flax NNX; the twin of ``torch_impl``."""

from recipe import start_program

start_program()
