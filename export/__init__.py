"""From a checkpoint to a verified ONNX file: ``python -m export --help``."""
