"""The proof: training runs in PyTorch and Flax side by side, compared step by step."""
