"""The picture of a run."""

import io
from typing import Any

import numpy as np

from recipe.checkpoint import Checkpoint


def encode_png(figure: Any) -> bytes:
    """A figure of pyplot's as PNG bytes; it is closed."""
    from matplotlib import pyplot

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    pyplot.close(figure)
    return content.getvalue()


def draw_curves(checkpoint: Checkpoint) -> bytes:
    """Loss of every step and loss and accuracy of every epoch, as PNG bytes."""
    import matplotlib  # slow to import, and wanted only at the end of a run

    matplotlib.use("Agg")
    from matplotlib import pyplot

    config, metrics = checkpoint.config, checkpoint.metrics
    steps = [entry["step"] for entry in metrics]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(np.arange(1, checkpoint.step + 1), checkpoint.losses, lw=0.3, color="C0", alpha=0.6)
    left.plot(steps, [entry["train_loss"] for entry in metrics], "o-", ms=3, color="C0", label="train")
    left.plot(steps, [entry["val_loss"] for entry in metrics], "o-", ms=3, color="C1", label="validation")
    left.set(xlabel="step", ylabel="loss", yscale="log")
    for name, label, colour in (("train_accuracy", "train", "C0"), ("val_accuracy", "validation", "C1")):
        accuracies = [100 * entry[name] for entry in metrics]
        right.plot([entry["epoch"] for entry in metrics], accuracies, "o-", ms=3, color=colour, label=label)
    right.axhline(99.4, color="grey", lw=0.8, ls="--")
    lowest = min((100 * entry["val_accuracy"] for entry in metrics), default=0.0)
    right.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(min(97.0, lowest - 1), 100.0))
    right.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
    right.legend()
    figure.suptitle(
        f"{config['network']}, {config['recipe']['name']}, seed {config['seed']}, {config['framework']}, "
        f"{config['data']['name']}"
    )
    return encode_png(figure)
