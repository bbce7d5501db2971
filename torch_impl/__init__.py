"""The networks and their training loop in PyTorch; the twin of ``jax_impl``."""

from recipe import end_quietly_on_signals

end_quietly_on_signals()
