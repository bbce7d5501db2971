"""The networks and their training loop in Flax NNX; the twin of ``torch_impl``."""
