"""What both implementations must agree on; NumPy only, imports neither torch nor jax."""
