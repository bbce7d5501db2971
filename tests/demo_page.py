"""The page of demo/ in Chromium without a window, from a plain server, without network."""

import base64
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlunsplit

import numpy as np
import pytest

READY = "#answers[aria-busy=false] article"  # the models are loaded, and what is drawn is answered
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Visit:
    """An open page, and what went wrong in it."""

    page: Any
    url: str
    faults: list[str] = field(default_factory=list)  # messages of the console, requests to other places

    def wait(self) -> None:
        self.page.wait_for_selector(READY)


OpenPage = Callable[[], Visit]


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def open_pages(folder: Path) -> Iterator[OpenPage]:
    """A function that opens the page of a folder in a new context."""
    playwright_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium; on Debian: apt-get install chromium")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = urlunsplit(("http", f"127.0.0.1:{server.server_port}", "/", "", ""))
    with playwright_api.sync_playwright() as playwright:
        # No name but the server's address leads anywhere: the network is off.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        )

        def visit() -> Visit:
            page = browser.new_context(viewport={"width": 1180, "height": 900}).new_page()
            visit = Visit(page, url)

            def check(request: Any) -> None:
                if not request.url.startswith((url, "data:", "blob:")):
                    visit.faults.append(f"request to {request.url}")

            page.on("console", lambda message: visit.faults.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: visit.faults.append(f"error: {error}"))
            page.on("requestfailed", lambda request: visit.faults.append(f"failed: {request.url}"))
            page.on("request", check)
            page.goto(url)
            visit.wait()
            return visit

        yield visit
        browser.close()
    server.shutdown()
    server.server_close()


def draw(visit: Visit, strokes: Sequence[np.ndarray]) -> None:
    """Draw thin lines with the mouse on an empty canvas, and wait for the answer.

    Args:
        visit: the page.
        strokes: each (points, 2), x and y in units of the canvas's side, from its upper left corner.
    """
    page, box = visit.page, visit.page.locator("#canvas").bounding_box()
    page.locator("#clear").click()
    page.locator("[name=pen]").first.check()
    for stroke in strokes:
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke.tolist()]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        page.mouse.up()
    visit.wait()


LOGITS = """async ([file, text]) => {
  const { Model } = await import("./inference.js");
  const model = await Model.fetch(file);
  const images = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const all = [];
  for (let start = 0; start < images.length; start += 100 * 784) {
    all.push(...(await model.logits(images.subarray(start, start + 100 * 784))));
  }
  return all;
}"""


PREPARED = """async (text) => {
  const { prepare } = await import("./preparation.js");
  const images = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  let result = "";
  for (let start = 0; start < images.length; start += 784) {
    result += String.fromCharCode(...prepare(images.subarray(start, start + 784), 28));
  }
  return btoa(result);
}"""


def encode(images: np.ndarray) -> str:
    """uint8 images as text for the page."""
    return base64.b64encode(np.ascontiguousarray(images).tobytes()).decode()


def page_logits(visit: Visit, file: str, images: np.ndarray) -> np.ndarray:
    """Logits (N, 10) of uint8 images (N, 28, 28) by the page's own inference with a model of its folder."""
    logits = visit.page.evaluate(LOGITS, [file, encode(images)])
    return np.array(logits, np.float32).reshape(-1, 10)


IMAGES = """async () => {
  const { prepare, shrink } = await import("./preparation.js");
  const canvas = document.getElementById("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.width);
  const ink = Uint8Array.from({ length: canvas.width ** 2 }, (_, pixel) => data[4 * pixel + 3]);
  return [prepare, shrink].map((make) => [...make(ink, canvas.width)]);
}"""


def canvas_images(visit: Visit) -> np.ndarray:
    """What is on the canvas as uint8 (2, 28, 28): prepared by the page, and only shrunk."""
    return np.array(visit.page.evaluate(IMAGES), np.uint8).reshape(2, 28, 28)
