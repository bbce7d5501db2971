"""A `reference` run beside the published one: ``python -m benchmarks.reference --run RUN``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from benchmarks.machine import describe_machine
from recipe import report
from recipe.checkpoint import FILE_NAME, Checkpoint, load_checkpoint
from recipe.curves import encode_png
from recipe.errors import UserError
from recipe.files import write_atomically
from recipe.options import check_choice, optional, run_command

# What the two published runs reported, once each, in percent of the 10,000 test images (DESIGN.md).
PUBLISHED = {
    "net10040": {"epochs": 20, "best": 99.43, "best_epoch": 17, "last_five": 99.30},
    "net9954": {"epochs": 19, "best": 99.42, "best_epoch": 17, "last_five": 99.32},
}


@dataclass(frozen=True)
class ReferenceOptions:
    """Put a finished run of the recipe `reference` beside the published run of its network."""

    run: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    out: Annotated[Path | None, optional("FILE")] = None
    """Result file [results/reference-NETWORK-FRAMEWORK.json]; the picture goes beside it."""


def summarise(checkpoint: Checkpoint) -> dict[str, Any]:
    """A run's validation accuracies in percent: every epoch's, the last, the best, the last five's mean."""
    accuracies = [100 * entry["val_accuracy"] for entry in checkpoint.metrics]
    return {
        "final": round(accuracies[-1], 2),
        "best": round(max(accuracies), 2),
        "best_epoch": 1 + int(np.argmax(accuracies)),
        "last_five": round(float(np.mean(accuracies[-5:])), 2),
        "accuracies": [round(accuracy, 2) for accuracy in accuracies],
    }


def draw(ours: dict[str, Any], published: dict[str, Any], title: str) -> bytes:
    """Our curve and what is known of the published one, as PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    epochs = np.arange(1, len(ours["accuracies"]) + 1)
    axes.plot(epochs, ours["accuracies"], "o-", ms=4, label="this run")
    axes.plot(
        published["best_epoch"], published["best"], "*", ms=12, color="C1", label="published best epoch"
    )
    last = [published["epochs"] - 4, published["epochs"]]
    axes.plot(last, [published["last_five"]] * 2, color="C1", label="published, mean of the last five")
    axes.set(xlabel="epoch", ylabel="accuracy on the test images (%)", ylim=(97.5, 99.7), title=title)
    axes.set_xticks(epochs)
    axes.grid(alpha=0.3)
    axes.legend()
    return encode_png(figure)


def main(options: ReferenceOptions) -> None:
    """Compare as the command line says, and write the result and the picture."""
    checkpoint = load_checkpoint(options.run / FILE_NAME)
    checkpoint.check_config("recipe.name", "data.name", "framework", "seed")
    config = checkpoint.config
    name = config["network"]
    if config["recipe"]["name"] != "reference" or config["data"]["name"] != "mnist" or name not in PUBLISHED:
        raise UserError(f"{options.run} is no run of `reference` on MNIST; there is no published run like it")
    if not checkpoint.has_whole_metrics() or len(checkpoint.metrics) < PUBLISHED[name]["epochs"]:
        raise UserError(f"{options.run} has {len(checkpoint.metrics)} epochs only; let it end first")
    ours, published = summarise(checkpoint), PUBLISHED[name]
    check_choice(
        "the run's framework", config["framework"], "torch", "jax"
    )  # it becomes part of a file's name
    out = options.out or Path("results") / f"reference-{name}-{config['framework']}.json"
    result = describe_machine() | {
        "run": config,
        "seconds": round(sum(entry["seconds"] for entry in checkpoint.metrics), 1),
        "ours": ours,
        "published": published,
    }
    write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())
    title = f"{name}, reference, {config['framework']}, seed {config['seed']}"
    write_atomically(out.with_suffix(".png"), draw(ours, published, title))
    for key in ("final", "best", "best_epoch", "last_five"):
        report.show_line(f"{key:10}  this run {ours[key]:6}  published {published.get(key, '-'):>6}")
    report.show_line(f"-> {out}")


if __name__ == "__main__":
    run_command(ReferenceOptions, main, "python -m benchmarks.reference")
