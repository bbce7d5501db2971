"""The networks and their training loop in PyTorch; the twin of ``jax_impl``."""
