"""The page of demo/ in a browser without a window, from a plain server, without network."""

import base64
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlunsplit

import numpy as np

from recipe.errors import UserError

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
READY = "#answers[aria-busy=false] article"  # the models are loaded, and what is drawn is answered


@dataclass
class Visit:
    """An open page, and what went wrong in it."""

    page: "Page"
    url: str
    faults: list[str] = field(default_factory=list)  # messages of the console, requests to other places

    @property
    def box(self) -> dict[str, float]:
        """The canvas on the screen: x, y, width, height in pixels."""
        box = self.page.locator("#canvas").bounding_box()
        assert box is not None
        return {"x": box["x"], "y": box["y"], "width": box["width"], "height": box["height"]}


class _Handler(SimpleHTTPRequestHandler):
    """Python's plain static server, which sends no special headers, but writes no log."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a static server on this machine for a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield urlunsplit(("http", f"127.0.0.1:{server.server_port}", "/", "", ""))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def find_browser() -> str:
    """The path of Chromium.

    Raises:
        UserError: there is none, or no Playwright to drive it.
    """
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        raise UserError("Playwright is not installed; pip install -e '.[test]'") from None
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise UserError("there is no Chromium; on Debian: apt-get install chromium")
    return path


OpenPage = Callable[..., Visit]  # takes the options of a Playwright context


@contextmanager
def open_pages(folder: Path) -> Iterator[OpenPage]:
    """A function that opens the page of a folder in a new context.

    Raises:
        UserError: there is no browser.
    """
    from playwright.sync_api import sync_playwright

    path = find_browser()
    with serve(folder) as url, sync_playwright() as playwright:
        # No name but the server's address leads anywhere: the network is off.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        )

        def visit(**options: Any) -> Visit:
            page = browser.new_context(**options).new_page()
            visit = Visit(page, url)
            page.on("console", lambda message: visit.faults.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: visit.faults.append(f"error: {error}"))
            page.on("requestfailed", lambda request: visit.faults.append(f"failed: {request.url}"))
            page.on("request", lambda request: _check_address(visit, request.url))
            page.goto(url)
            page.wait_for_selector(READY)
            return visit

        yield visit
        browser.close()


def _check_address(visit: Visit, address: str) -> None:
    if not address.startswith((visit.url, "data:", "blob:")):
        visit.faults.append(f"request to {address}")


def draw(visit: Visit, strokes: Sequence[np.ndarray], pen: int) -> None:
    """Draw with the mouse, on an empty canvas, and wait for the answer.

    Args:
        visit: the page.
        strokes: each (points, 2) in units of the canvas's side, from its upper left corner.
        pen: 0 thin, 1 medium, 2 thick.
    """
    page, box = visit.page, visit.box
    page.locator("#clear").click()
    page.locator("[name=pen]").nth(pen).check()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke.tolist()]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        page.mouse.up()
    page.wait_for_selector(READY)


def answers(visit: Visit) -> list[tuple[int, float, bool]]:
    """What the page shows: each model's digit, its probability in whole percents, 0 to 1, and if it is sure.

    An empty canvas gives the digit -1.
    """
    return [tuple(each) for each in visit.page.evaluate(_ANSWERS)]


_ANSWERS = """() => [...document.querySelectorAll(".answer")].map((answer) => [
  [...answer.querySelectorAll("li")].findIndex((row) => row.classList.contains("best")),
  parseFloat(answer.querySelector(".best .value")?.textContent ?? "0") / 100,
  !answer.querySelector(".unsure"),
])"""

_LOGITS = """async ([file, text]) => {
  const { Model } = await import("./inference.js");
  const model = await Model.fetch(file);
  const images = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const all = [];
  for (let start = 0; start < images.length; start += 100 * 784) {
    all.push(...(await model.logits(images.subarray(start, start + 100 * 784))));
  }
  return all;
}"""


def page_logits(visit: Visit, file: str, images: np.ndarray) -> np.ndarray:
    """Logits (N, 10) of uint8 images (N, 28, 28) by the page's own inference.

    Args:
        visit: the page.
        file: the model's address, relative to the page.
        images: white on black.
    """
    text = base64.b64encode(np.ascontiguousarray(images).tobytes()).decode()
    return np.array(visit.page.evaluate(_LOGITS, [file, text]), np.float32).reshape(-1, 10)


_IMAGES = """async () => {
  const { prepare, shrink } = await import("./preparation.js");
  const canvas = document.getElementById("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.width);
  const ink = Uint8Array.from({ length: canvas.width ** 2 }, (_, pixel) => data[4 * pixel + 3]);
  return [prepare, shrink].map((make) => [...make(ink, canvas.width)]);
}"""


def canvas_images(visit: Visit) -> np.ndarray:
    """What is on the canvas as uint8 (2, 28, 28): prepared by the page, and only shrunk."""
    return np.array(visit.page.evaluate(_IMAGES), np.uint8).reshape(2, 28, 28)
