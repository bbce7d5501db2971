"""Training speed in both frameworks, against scripts as people write them."""
