"""From a checkpoint to a verified ONNX file: ``python -m export --help``."""

from recipe import end_quietly_on_signals

end_quietly_on_signals()
