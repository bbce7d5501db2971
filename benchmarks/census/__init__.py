"""Public ports beside their originals: `python -m benchmarks.census`."""
