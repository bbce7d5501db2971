"""Pictures, drawn by Matplotlib without a screen."""

import io
from typing import Any

import numpy as np

from recipe.checkpoint import Checkpoint
from recipe.data import GOAL


def subplots(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, as ``pyplot.subplots`` returns them, for PNG files only."""
    import matplotlib  # here, because it is slow to import and needed only at the end of a run

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, layout="constrained", **options)


def encode_png(figure: Any) -> bytes:
    """The figure as PNG bytes; it is closed."""
    from matplotlib import pyplot

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    pyplot.close(figure)
    return content.getvalue()


def draw_curves(checkpoint: Checkpoint) -> bytes:
    """Loss of every step, and loss and accuracy of every epoch, as PNG bytes."""
    config, metrics = checkpoint.config, checkpoint.metrics
    steps = [entry["step"] for entry in metrics]
    figure, (left, right) = subplots(1, 2, figsize=(11, 4))
    left.plot(np.arange(1, checkpoint.step + 1), checkpoint.losses, lw=0.3, color="C0", alpha=0.6)
    left.plot(steps, [entry["train_loss"] for entry in metrics], "o-", ms=3, color="C0", label="train")
    left.plot(steps, [entry["val_loss"] for entry in metrics], "o-", ms=3, color="C1", label="validation")
    left.set(xlabel="step", ylabel="loss", yscale="log")
    for name, label, colour in (("train_accuracy", "train", "C0"), ("val_accuracy", "validation", "C1")):
        accuracies = [100 * entry[name] for entry in metrics]
        right.plot([entry["epoch"] for entry in metrics], accuracies, "o-", ms=3, color=colour, label=label)
    if config["data"]["name"] == "mnist":
        right.axhline(100 * GOAL, color="grey", lw=0.8, ls="--", label=f"goal: {100 * GOAL:g} %")
    shown = [entry["val_accuracy"] for entry in metrics]
    shown += [entry["train_accuracy"] for entry in metrics[1:]]  # the first epoch's would flatten the rest
    right.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(100 * min(shown, default=0.0) - 1, 100.0))
    right.xaxis.get_major_locator().set_params(integer=True)
    left.legend(loc="upper right")
    right.legend(loc="lower right")
    figure.suptitle(
        f"{config['network']}, {config['recipe']['name']}, seed {config['seed']}, {config['framework']}, "
        f"{config['data']['name']}"
    )
    return encode_png(figure)
