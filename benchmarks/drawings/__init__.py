"""Digits drawn on the page of demo/, as a hand would: ``python -m benchmarks.drawings --help``."""
