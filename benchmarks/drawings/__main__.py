"""Draw digits on the page of demo/ and count the right answers: ``python -m benchmarks.drawings --help``."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from benchmarks.drawings.browser import (
    READY,
    OpenPage,
    Visit,
    answers,
    canvas_images,
    draw,
    open_pages,
    page_logits,
)
from benchmarks.drawings.strokes import Stroke, find_strokes
from recipe import report
from recipe.cli import check_range, optional, run_command
from recipe.data import load, split
from recipe.errors import UserError
from recipe.options import MAX_SEED, SplitName
from recipe.record import PublishOptions, Row, add_rows
from torch_impl.data import read_mnist

PAGE = Path(__file__).parents[2] / "demo" / "dist"
PENS = (0.05, 0.08, 0.11)  # widths of the page's pens, in units of the canvas's side
SIZES = (0.4, 0.6, 0.8)  # of the longer side of a digit's middle lines, in the same units
SCRIBBLES = 10  # digits to one drawing that is none
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the probability below which the page may be in doubt

# From a pointer's first move that is not answered to the bars that answer it, in ms.
_STOPWATCH = """() => {
  window.latencies = [];
  let start;
  const answers = document.getElementById("answers");
  document.getElementById("canvas").addEventListener("pointermove", (event) => {
    if (event.buttons) start ??= event.timeStamp;
  });
  new MutationObserver(() => {
    if (start === undefined || answers.getAttribute("aria-busy") === "true") return;
    window.latencies.push(performance.now() - start);
    start = undefined;
  }).observe(answers, { attributeFilter: ["aria-busy"] });
}"""


@dataclass(frozen=True)
class DrawingsOptions(PublishOptions):
    """Draw MNIST's test digits on the page of demo/, stroke by stroke, and count the right answers."""

    drawings: int = 1000
    """How many digits. Then come a tenth as many scribbles, which the page should not take for digits."""
    seed: int = 0
    """Decides the places and the scribbles."""
    split: SplitName = "test"
    """Which digits: the test images, or the last training images."""
    page: Annotated[Path, optional("DIR", "demo/dist")] = PAGE
    """The page, as npm run build made it."""
    data_dir: Annotated[Path | None, optional("DIR")] = None
    """Folder with the four original MNIST files (or set MNIST_DIR)."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn, and what the page showed."""

    prepared: np.ndarray  # uint8 (N, 28, 28), what the networks got
    shrunk: np.ndarray  # uint8 (N, 28, 28), the whole canvas shrunk
    shown: list[list[tuple[int, float, bool]]]  # of each drawing, of each model on the page: see `answers`
    latencies: list[float]  # ms from a move of the mouse to the bars


def place(strokes: list[Stroke], pen: float, size: float, rng: np.random.Generator) -> list[Stroke]:
    """Strokes from a square of side 1 around 0 at a random place of the canvas, where they have room."""
    points = np.concatenate(strokes) * size
    low, high = pen / 2 - points.min(0), 1 - pen / 2 - points.max(0)
    shift = rng.uniform(low, np.maximum(low, high))
    return [size * stroke + shift for stroke in strokes]


def scribble(rng: np.random.Generator) -> list[Stroke]:
    """One to three random smooth curves in a square of side 1 around 0."""
    strokes = []
    for _ in range(rng.integers(1, 4)):
        corners = rng.random((rng.integers(4, 12), 2)) - 0.5
        times = np.linspace(0, len(corners) - 1, 5 * len(corners))
        curve = np.stack([np.interp(times, range(len(corners)), column) for column in corners.T], 1)
        for _ in range(4):
            curve[1:-1] = (curve[:-2] + curve[1:-1] + curve[2:]) / 3
        strokes.append(curve)
    return strokes


def draw_all(visit: Visit, drawings: list[list[Stroke]], rng: np.random.Generator) -> Drawn:
    """Draw each drawing, with every pen in every size in turn, at a random place."""
    visit.page.evaluate(_STOPWATCH)
    images, shown = [], []
    with report.make_progress() as progress:
        task = progress.add_task("drawing", total=len(drawings))
        for strokes, (size, pen) in zip(drawings, itertools.cycle(itertools.product(SIZES, range(3)))):
            draw(visit, place(strokes, PENS[pen], size, rng), pen)
            images.append(canvas_images(visit))
            shown.append(answers(visit))
            progress.advance(task)
    prepared, shrunk = np.stack(images, 1)
    return Drawn(prepared, shrunk, shown, visit.page.evaluate("window.latencies"))


def read_list(page: Path) -> list[Row]:
    """The models of a page.

    Raises:
        UserError: it is not built.
    """
    try:
        return json.loads((page / "models" / "models.json").read_text())["models"]
    except OSError:
        raise UserError(f"there is no page in {page}; run npm ci && npm run build in demo/") from None


def measure(
    open_page: OpenPage,
    models: list[Row],
    images: np.ndarray,
    labels: np.ndarray,
    scribbles: int,
    seed: int,
) -> tuple[list[Row], list[str]]:
    """Draw images and scribbles on a page.

    Args:
        open_page: of `open_pages`.
        models: the page's, see `read_list`.
        images: uint8 (N, 28, 28).
        labels: (N,).
        scribbles: how many drawings without a digit.
        seed: of places and scribbles.

    Returns:
        One row for each model, and what went wrong in the page.
    """
    rng = np.random.default_rng(seed)
    digits = [find_strokes(image) for image in images]
    visit = open_page(viewport={"width": 1180, "height": 900})
    visit.page.get_by_label("Draw an example of 3").click()
    visit.page.wait_for_selector(READY)
    first_answer_ms = visit.page.evaluate("performance.now()")
    visit.page.evaluate("document.getElementById('layers').open = false")
    drawn = draw_all(visit, digits, rng)
    others = draw_all(visit, [scribble(rng) for _ in range(scribbles)], rng)
    page_figures = {
        "first_answer_ms": first_answer_ms,
        "bars_ms_p50": float(np.median(drawn.latencies)),
        "bars_ms_p95": float(np.quantile(drawn.latencies, 0.95)),
    }
    rows = [_row(visit, model, models, labels, drawn, others) | page_figures for model in models]
    return rows, visit.faults


def _row(visit: Visit, model: Row, models: list[Row], labels: np.ndarray, drawn: Drawn, others: Drawn) -> Row:
    """What one model made of the drawings, and for the models that the page showed, what it said."""
    file = f"models/{model['folder']}/model.onnx"
    logits = page_logits(visit, file, drawn.prepared)
    classes = logits.argmax(1)
    unprepared = page_logits(visit, file, drawn.shrunk).argmax(1)
    probability = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)  # of the answer
    row = {key: model[key] for key in ("network", "framework", "parameters")} | {
        "drawings": len(labels),
        "right": float((classes == labels).mean()),
        "right_unprepared": float((unprepared == labels).mean()),
        "below": {str(threshold): float((probability < threshold).mean()) for threshold in THRESHOLDS},
    }
    beside = [each for each in models if each["network"] == models[0]["network"]]
    if model in beside:  # the page opens with these
        column = beside.index(model)
        if not np.array_equal(classes, [shown[column][0] for shown in drawn.shown]):
            raise UserError(f"the page shows other digits than {file} gives")
        row |= {
            "doubted": float(np.mean([not shown[column][2] for shown in drawn.shown])),
            "scribbles": len(others.shown),
            "doubted_scribbles": float(np.mean([not shown[column][2] for shown in others.shown])),
        }
    return row


def main(options: DrawingsOptions) -> None:
    """Measure, print, and write the rows.

    Raises:
        UserError: no page, no browser, no MNIST, or a fault in the page.
    """
    check_range("--drawings", options.drawings, SCRIBBLES, 10_000)
    check_range("--seed", options.seed, 0, MAX_SEED)
    models = read_list(options.page)
    digits = split(load("mnist", options.data_dir, read_mnist).dataset, options.split)
    chosen = np.linspace(0, len(digits.val_labels) - 1, options.drawings).astype(int)
    images, labels = digits.val_images[chosen], digits.val_labels[chosen]
    with open_pages(options.page) as open_page:
        rows, faults = measure(open_page, models, images, labels, options.drawings // SCRIBBLES, options.seed)
    if faults:
        raise UserError(f"the page reports {len(faults)} faults, the first: {faults[0]}")
    for row in rows:
        report.show_line(
            f"{row['network']:<10}{row['framework']:<7}{row['right']:.2%} of {row['drawings']:,} drawings, "
            f"{row['right_unprepared']:.1%} without the preparation"
        )
        shares = ", ".join(f"{share:.1%} below {threshold}" for threshold, share in row["below"].items())
        report.show_line(f"  probability of the answer: {shares}")
        if "doubted" in row:
            report.show_line(
                f"  in doubt: {row['doubted']:.1%} of the digits, {row['doubted_scribbles']:.0%} of "
                f"{row['scribbles']} scribbles"
            )
    report.show_line(
        f"first answer {rows[0]['first_answer_ms']:.0f} ms after opening; from a move to the bars "
        f"{rows[0]['bars_ms_p50']:.0f} ms, in 95 of 100 at most {rows[0]['bars_ms_p95']:.0f} ms"
    )
    rows = [{"split": options.split} | row for row in rows]
    path = add_rows("drawings", rows, ("numpy", "playwright"), options.publish)
    report.show_line(f"-> {path}")


if __name__ == "__main__":
    run_command(DrawingsOptions, main, "python -m benchmarks.drawings")
