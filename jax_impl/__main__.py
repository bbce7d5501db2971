"""What there is to run: ``python -m jax_impl``."""

from recipe.console import show_line

show_line("python -m jax_impl.train trains a network in Flax; --help lists its options")
