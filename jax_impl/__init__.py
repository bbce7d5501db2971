"""The networks and their training loop in Flax NNX; the twin of ``torch_impl``."""

from recipe import end_quietly_on_signals

end_quietly_on_signals()
