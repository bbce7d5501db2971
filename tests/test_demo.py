"""The page of demo/, in a browser without a window and without network.

Skipped where there is no Chromium, no Playwright, or no npm.
"""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.images import to_unit
from export.verify import RELATIVE_TOLERANCE, TOLERANCE, run_model
from tests.demo_page import PREPARED, OpenPage, Visit, canvas_images, draw, encode, open_pages, page_logits
from tests.helpers import ROOT

DEMO, MODELS = ROOT / "demo", ROOT / "models"
ENTRIES = json.loads((MODELS / "models.json").read_text())["models"]
NETWORKS = list(dict.fromkeys(entry["network"] for entry in ENTRIES))
FIRST = MODELS / ENTRIES[0]["folder"]
DRAWN, SHARE = 200, 0.95  # of 200 drawn digits 196 were read; three standard errors less

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


def run_npm(*arguments: str) -> subprocess.CompletedProcess[str]:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm, which installs onnxruntime-web")
    return subprocess.run([npm, *arguments], cwd=DEMO, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Opens the page, built from models/."""
    if not (DEMO / "node_modules" / "onnxruntime-web").exists():
        installed = run_npm("ci", "--no-audit", "--no-fund")
        if installed.returncode:
            pytest.skip(f"npm ci failed: {installed.stderr.strip().splitlines()[-1:]}")
    site = tmp_path_factory.mktemp("site")
    built = run_npm("run", "build", "--", "--out", str(site))
    assert built.returncode == 0, built.stderr
    with open_pages(site) as visit:
        yield visit


@pytest.fixture(scope="module")
def shared(open_page) -> Visit:
    """A page that several tests draw on."""
    return open_page()


@pytest.fixture
def visit(shared) -> Iterator[Visit]:
    shared.page.evaluate("document.getElementById('layers').open = false")  # they cost time at every move
    shared.page.locator("#clear").click()
    yield shared
    assert shared.faults == []


def shown(visit: Visit) -> list[str]:
    return visit.page.locator(".digit").all_text_contents()


def click_example(visit: Visit, digit: int) -> None:
    visit.page.get_by_label(f"Draw an example of {digit}").click()
    visit.wait()


def choose_file(visit: Visit, name: str, content: bytes) -> str:
    """Give the page a file; returns what it says of it."""
    visit.page.evaluate("document.getElementById('message').textContent = ''")
    files: Any = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    visit.page.locator("#file").set_input_files(files)
    visit.page.wait_for_function(
        "name => document.getElementById('message').textContent"
        " || [...document.querySelectorAll('h3')].some((title) => title.textContent === name)",
        arg=name,
    )
    return visit.page.locator("#message").text_content() or ""


def test_preparation_without_a_browser():
    answer = run_npm("test")
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["folder"])
def test_logits_are_those_of_onnx_runtime_in_python(entry, visit, mnist):
    """MNIST's test images through the page's own inference.

    Both runtimes round float32 sums in an order of their own, and each may be as far from float64 as
    `export.verify` allows a file.
    """
    file = f"{entry['folder']}/model.onnx"
    expected = run_model((MODELS / file).read_bytes(), to_unit(mnist.val_images), 100)[0]
    logits = page_logits(visit, f"models/{file}", mnist.val_images)
    limit = max(TOLERANCE, RELATIVE_TOLERANCE * float(np.abs(expected).max()))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2 * limit)
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    assert (logits.argmax(1) == mnist.val_labels).mean() == pytest.approx(entry["accuracy"], abs=5e-5)


def test_preparation_leaves_mnist_as_it_is(visit, mnist):
    """All test images but three, whose longer side is 19 pixels: they become larger by one."""
    images = mnist.val_images
    prepared = np.frombuffer(base64.b64decode(visit.page.evaluate(PREPARED, encode(images))), np.uint8)
    changed = np.flatnonzero((prepared.reshape(images.shape) != images).any((1, 2)))
    longest = [max(np.ptp(np.nonzero(image), axis=1)) + 1 for image in images]
    assert set(changed) == set(np.flatnonzero(np.array(longest) != 20))
    assert len(changed) == 3


def test_examples_in_every_network_and_without_a_server(open_page):
    """Once the models are loaded the page needs nobody; every network reads its own examples."""
    visit = open_page()
    click_example(visit, 5)
    for network in [*NETWORKS[1:], NETWORKS[0]]:
        visit.page.locator("#network").select_option(network)
        count = sum(entry["network"] == network for entry in ENTRIES)
        visit.page.wait_for_selector(f"#maps article:nth-child({count}) .channels")
        visit.wait()
    visit.page.context.set_offline(True)
    for network in NETWORKS:
        visit.page.locator("#network").select_option(network)
        count = sum(entry["network"] == network for entry in ENTRIES)
        for digit in range(10):
            click_example(visit, digit)
            assert shown(visit) == [str(digit)] * count, network
    visit.page.context.close()
    assert visit.faults == []


def ink_strokes(image: np.ndarray) -> list[np.ndarray]:
    """Horizontal strokes over the dark runs of a uint8 (28, 28) digit, in a square of side 1 around 0."""
    rows, columns = np.nonzero(image >= 128)
    size = max(np.ptp(rows), np.ptp(columns)) + 1
    middle = np.array([columns.min() + columns.max(), rows.min() + rows.max()]) / 2
    strokes = []
    for row in np.unique(rows):
        inked = columns[rows == row]
        for run in np.split(inked, np.flatnonzero(np.diff(inked) > 1) + 1):
            strokes.append((np.array([[run[0], row], [run[-1], row]]) - middle) / size)
    return strokes


def test_digits_drawn_with_the_mouse_are_read(visit, mnist, rng):
    """At random places in three sizes; shown is what the model says of the image that the page prepared, or
    that it is unsure. The same drawings, only shrunk, are read worse."""
    right, shrunk_right, unsure = 0, 0, 0
    for index, chosen in enumerate(np.linspace(0, 9999, DRAWN).astype(int)):
        size, label = (0.4, 0.6, 0.8)[index % 3], mnist.val_labels[chosen]
        middle = 0.5 + rng.uniform(-1, 1, 2) * (0.45 - size / 2)
        draw(visit, [middle + size * stroke for stroke in ink_strokes(mnist.val_images[chosen])])
        logits = page_logits(visit, f"models/{FIRST.name}/model.onnx", canvas_images(visit))
        prepared, shrunk = logits.argmax(1)
        probability = 1 / np.exp(logits[0] - logits[0].max()).sum()
        if abs(probability - 0.95) > 0.001:
            assert shown(visit)[0] == (str(prepared) if probability > 0.95 else "Not a digit?")
        right, shrunk_right = right + (prepared == label), shrunk_right + (shrunk == label)
        unsure += probability < 0.95
    assert shrunk_right < right >= SHARE * DRAWN, f"{right} of {DRAWN} right, {shrunk_right} only shrunk"
    assert 0 < unsure < DRAWN


def test_drawing_by_keyboard_and_undoing_it(visit):
    """A vertical line is a one, and a screen reader is told so."""
    visit.page.locator("#canvas").focus()
    for key, times in (("ArrowUp", 9), ("Space", 1), ("ArrowDown", 18), ("Space", 1)):
        for _ in range(times):
            visit.page.keyboard.press(key)
    visit.wait()
    assert set(shown(visit)) == {"1"}
    assert "PyTorch: 1, " in (visit.page.locator("#status").text_content() or "")
    visit.page.locator("#undo").click()
    visit.wait()
    assert visit.page.locator("#status").text_content() == "Nothing is drawn."


def test_feature_maps(visit, mnist):
    """What the page computes for its pictures, against ONNX Runtime in Python."""
    image = mnist.val_images[0]
    session = onnxruntime.InferenceSession((FIRST / "feature-maps.onnx").read_bytes())
    names = [output.name for output in session.get_outputs()][2:]
    maps = visit.page.evaluate(
        """async ([folder, image]) => {
          const { Model } = await import("./inference.js");
          const model = await Model.fetch(`models/${folder}/feature-maps.onnx`);
          return (await model.maps(Uint8Array.from(image))).map(({ name, values }) => [name, [...values]]);
        }""",
        [FIRST.name, image.ravel().tolist()],
    )
    assert [name for name, _ in maps] == names
    for (_, values), expected in zip(maps, session.run(names, {"image": to_unit(image[None])}), strict=True):
        np.testing.assert_allclose(values, np.ravel(expected), rtol=0, atol=2e-5)


def test_own_file(open_page):
    """It answers, with its layers if it has them; a wrong one gives one line and changes nothing."""
    visit, plain = open_page(), (FIRST / "model.onnx").read_bytes()
    click_example(visit, 2)
    for name, content in (("maps.onnx", (FIRST / "feature-maps.onnx").read_bytes()), ("plain.onnx", plain)):
        choose_file(visit, name, content)
        visit.wait()
        assert shown(visit) == ["2"]
    visit.page.wait_for_selector("text=export it with --feature-maps")
    for content in (b"", b"PK\x03\x04 not a model", plain[:9000]):
        said = choose_file(visit, "wrong.onnx", content)
        assert said.startswith("wrong.onnx is no ONNX file") and "\n" not in said
        assert shown(visit) == ["2"]
    assert visit.faults == []


def test_the_page_itself_lets_nothing_out(open_page):
    """Its policy refuses what leads elsewhere; and these tests would see it."""
    visit = open_page()
    result = visit.page.evaluate("fetch('https://example.org/').then(() => 'sent', (error) => error.name)")
    assert result == "TypeError"
    assert any("Content Security Policy" in fault for fault in visit.faults)
