"""What there is to run: ``python -m torch_impl``."""

from recipe.console import show_line

show_line("python -m torch_impl.train trains a network in PyTorch; --help lists its options")
