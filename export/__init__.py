"""From a checkpoint to a verified ONNX file: ``python -m export --help``."""

from recipe import start_program

start_program()
