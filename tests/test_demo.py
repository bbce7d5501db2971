"""The page of demo/, in a browser without a window and without network.

Skipped where there is no Chromium, no Playwright, or no npm.
"""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from export.images import to_unit
from export.verify import RELATIVE_TOLERANCE, TOLERANCE, run_model
from tests.demo_page import (
    PREPARED,
    OpenPage,
    Visit,
    answers,
    canvas_images,
    draw,
    encode,
    open_pages,
    page_logits,
)
from tests.helpers import ROOT

DEMO, MODELS = ROOT / "demo", ROOT / "models"
ENTRIES = json.loads((MODELS / "models.json").read_text())["models"]
FIRST = MODELS / ENTRIES[0]["folder"]
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1180, "height": 900}}

SHARE = 0.95  # of 200 drawn digits 196 were read; three standard errors less
NONE = "\N{EN DASH}"  # what the page shows for an empty canvas

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]


def run_npm(*arguments: str) -> subprocess.CompletedProcess[str]:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm, which installs onnxruntime-web")
    return subprocess.run([npm, *arguments], cwd=DEMO, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, built from models/."""
    if not (DEMO / "node_modules" / "onnxruntime-web").exists():
        installed = run_npm("ci", "--no-audit", "--no-fund")
        if installed.returncode:
            pytest.skip(f"npm ci failed: {installed.stderr.strip().splitlines()[-1:]}")
    out = tmp_path_factory.mktemp("site")
    built = run_npm("run", "build", "--", "--out", str(out))
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def open_page(site) -> Iterator[OpenPage]:
    with open_pages(site) as visit:
        yield visit


@pytest.fixture(scope="module")
def shared(open_page) -> Visit:
    """A page that several tests draw on."""
    return open_page(**DESK)


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


def run_outputs(file: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file.read_bytes())
    names = [output.name for output in session.get_outputs()]
    results = session.run(None, {"image": to_unit(image[None])})
    return dict(zip(names, map(np.asarray, results), strict=True))


@pytest.fixture(scope="module")
def node() -> str:
    return shutil.which("node") or pytest.skip("no node")


def test_preparation_without_a_browser(node):
    answer = run_npm("test")
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "none"], "models.json, the list"),
        (["--models", "models"], "a/model.onnx"),
        (["--models", "empty", "--out", "models"], "is not this page and not empty"),
        (["--modles", "models"], "--modles"),
    ],
)
def test_a_build_that_cannot_be_says_so(arguments, message, node, tmp_path):
    """And deletes nothing."""
    shutil.copy(DEMO / "build.mjs", tmp_path)
    (tmp_path / "node_modules" / "onnxruntime-web").mkdir(parents=True)
    for name, entries in (("models", [{"folder": "a"}]), ("empty", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "models.json").write_text(json.dumps({"models": entries}))
    before = sorted(tmp_path.rglob("*"))
    command = [node, "build.mjs", *arguments]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (answer.returncode, len(answer.stderr.splitlines())) == (2, 1)
    assert message in answer.stderr
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------------------------------- the answers


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
    """Once the models are loaded the page needs nobody; every network reads its own examples.

    Before that it says what it could not load, and goes on with the network it has.
    """
    visit = open_page(**DESK)
    networks = list(dict.fromkeys(entry["network"] for entry in ENTRIES))
    select, message = visit.page.locator("#network"), visit.page.locator("#message")
    visit.page.context.set_offline(True)
    select.select_option(networks[-1])
    visit.page.wait_for_function("() => document.getElementById('message').textContent")
    assert "The server does not answer" in (message.text_content() or "")
    assert select.input_value() == networks[0]
    visit.page.context.set_offline(False)
    visit.faults.clear()
    click_example(visit, 5)
    for network in [*networks[1:], networks[0]]:
        folders = [entry["folder"] for entry in ENTRIES if entry["network"] == network]
        select.select_option(network)
        visit.page.wait_for_selector(f"#maps article:nth-child({len(folders)}) .channels")
        visit.wait()
    visit.page.context.set_offline(True)
    for network in networks:
        select.select_option(network)
        count = sum(entry["network"] == network for entry in ENTRIES)
        assert visit.page.locator(".answer").count() == count
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


def scribble(rng: np.random.Generator) -> list[np.ndarray]:
    """One to three random curves in a square of side 1 around 0."""
    return [np.cumsum(rng.normal(0, 0.12, (20, 2)), 0).clip(-0.5, 0.5) for _ in range(rng.integers(1, 4))]


def place(strokes: list[np.ndarray], size: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Strokes of a square of side 1 around 0 at a random place of the canvas, where they have room."""
    middle = 0.5 + rng.uniform(-1, 1, 2) * (0.45 - size / 2)
    return [middle + size * stroke for stroke in strokes]


def test_digits_drawn_with_the_mouse_are_read(visit, mnist, rng):
    """At random places in three sizes; shown is what the model says of the image that the page prepared.

    The same drawings, only shrunk, are read worse.
    """
    count = 200
    chosen = np.linspace(0, 9999, count).astype(int)
    right, shrunk_right = 0, 0
    for index, image in enumerate(mnist.val_images[chosen]):
        draw(visit, place(ink_strokes(image), (0.4, 0.6, 0.8)[index % 3], rng), 0)
        digits = [digit for digit, _, _ in answers(visit)]
        images = canvas_images(visit)
        prepared, shrunk = page_logits(visit, f"models/{FIRST.name}/model.onnx", images).argmax(1)
        assert digits[0] == prepared
        right += prepared == mnist.val_labels[chosen[index]]
        shrunk_right += shrunk == mnist.val_labels[chosen[index]]
    assert shrunk_right < right >= SHARE * count, f"{right} of {count} right, {shrunk_right} only shrunk"


def test_it_says_when_it_is_unsure(visit, rng):
    """Exactly when no digit has a probability of 95 %; scribbles and examples give both cases."""
    seen = set()
    for _ in range(4):
        draw(visit, place(scribble(rng), 0.7, rng), 1)
        for text, (digit, probability, sure) in zip(shown(visit), answers(visit), strict=True):
            assert text == (str(digit) if sure else "Not a digit?")
            if probability != 0.95:  # 95 % may be a little more or less
                assert sure == (probability > 0.95)
            seen.add(sure)
    click_example(visit, 7)
    assert all(sure for *_, sure in answers(visit))
    assert False in seen


def test_undo_and_clear(visit):
    click_example(visit, 4)  # two strokes
    image = visit.page.locator("#prepared").screenshot()
    visit.page.locator("#undo").click()
    visit.wait()
    assert visit.page.locator("#prepared").screenshot() != image
    visit.page.keyboard.press("Control+z")
    visit.wait()
    assert set(shown(visit)) == {NONE}
    click_example(visit, 3)
    assert shown(visit)[0] == "3"
    visit.page.locator("#clear").click()
    visit.wait()
    assert answers(visit)[0][0] == -1
    assert visit.page.locator("#status").text_content() == "Nothing is drawn."


def test_drawing_by_keyboard(visit):
    """A vertical line is a one, and a screen reader is told so."""
    page = visit.page
    page.locator("#canvas").focus()
    for key, times in (("ArrowUp", 9), ("Space", 1), ("ArrowDown", 18), ("Space", 1)):
        for _ in range(times):
            page.keyboard.press(key)
    visit.wait()
    assert set(shown(visit)) == {"1"}
    assert "PyTorch: 1, " in (page.locator("#status").text_content() or "")
    page.keyboard.press("Escape")
    visit.wait()
    assert set(shown(visit)) == {NONE}


def test_touch_on_a_narrow_screen(open_page):
    """A finger draws and does not scroll; nothing is wider than 360 pixels."""
    visit = open_page(**PHONE)
    box, session = visit.box, visit.page.context.new_cdp_session(visit.page)
    x = box["x"] + box["width"] / 2

    def touch(kind: str, *at: float) -> None:
        points = [{"x": x, "y": box["y"] + part * box["height"]} for part in at]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.8)
    for part in np.linspace(0.78, 0.2, 15).tolist():
        touch("touchMove", part)
    touch("touchEnd")
    visit.page.locator("#layers summary").click()
    visit.wait()
    assert set(shown(visit)) == {"1"}
    assert visit.page.evaluate("[scrollY, document.documentElement.scrollWidth]")[1] == 360
    visit.page.context.close()
    assert visit.faults == []


# ----------------------------------------------------------------------------------- layers and occlusion


def test_feature_maps_and_occlusion(visit, mnist):
    """What the page computes for its pictures, against ONNX Runtime in Python."""
    image = mnist.val_images[0]
    expected = run_outputs(FIRST / "feature-maps.onnx", image)
    maps, occluded = visit.page.evaluate(
        """async ([folder, image]) => {
          const { Model, occlusion } = await import("./inference.js");
          const pixels = Uint8Array.from(image);
          const maps = await (await Model.fetch(`models/${folder}/feature-maps.onnx`)).maps(pixels);
          const model = await Model.fetch(`models/${folder}/model.onnx`);
          let last;
          for await (const map of occlusion(model, pixels, 7)) last = map;
          return [maps.map(({ name, values }) => [name, [...values]]), [...last]];
        }""",
        [FIRST.name, image.ravel().tolist()],
    )
    assert [name for name, _ in maps] == list(expected)[2:]
    for name, values in maps:
        np.testing.assert_allclose(values, expected[name].ravel(), rtol=0, atol=2e-5)

    content = (FIRST / "model.onnx").read_bytes()
    total, count = np.zeros((28, 28)), np.zeros((28, 28))
    whole = run_model(content, to_unit(image[None]), 1)[0][0, 7]
    for top in range(0, 25, 2):
        for left in range(0, 25, 2):
            covered = image.copy()
            covered[top : top + 4, left : left + 4] = 0
            total[top : top + 4, left : left + 4] += (
                whole - run_model(content, to_unit(covered[None]), 1)[0][0, 7]
            )
            count[top : top + 4, left : left + 4] += 1
    np.testing.assert_allclose(np.reshape(occluded, (28, 28)), total / count, rtol=0, atol=1e-4)
    assert total.max() > 1


# ---------------------------------------------------------------------------------------------- own files


def choose_file(visit: Visit, name: str, content: bytes) -> None:
    files: Any = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    visit.page.locator("#file").set_input_files(files)
    visit.page.wait_for_function(
        "name => document.getElementById('message').textContent"
        " || [...document.querySelectorAll('h3')].some((title) => title.textContent === name)",
        arg=name,
    )


def test_own_file(open_page):
    """It answers, with its layers if it has them, and one can go back."""
    visit = open_page(**DESK)
    click_example(visit, 2)
    choose_file(visit, "mine.onnx", (FIRST / "feature-maps.onnx").read_bytes())
    visit.wait()
    assert shown(visit) == ["2"]
    visit.page.wait_for_selector(".channels canvas")
    choose_file(visit, "plain.onnx", (FIRST / "model.onnx").read_bytes())
    visit.page.wait_for_selector("text=export it with --feature-maps")
    assert shown(visit) == ["2"]
    visit.page.locator("#network").select_option(ENTRIES[0]["network"])
    visit.page.wait_for_selector(".answer >> nth=1")
    assert visit.faults == []


def another_network() -> bytes:
    model = onnx.load(FIRST / "model.onnx")
    for node in model.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]
    model.graph.input[0].name = "picture"
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "is no ONNX file"),
        (lambda: b"PK\x03\x04 not a model", "is no ONNX file"),
        (lambda: (FIRST / "model.onnx").read_bytes()[:9000], "is no ONNX file"),
        (another_network, "is another network"),
    ],
    ids=["empty", "archive", "truncated", "input"],
)
def test_a_wrong_file_gives_one_line(content, message, visit):
    """And the models there were go on."""
    visit.page.locator("#network").select_option(ENTRIES[-1]["network"])
    visit.page.locator("#network").select_option(ENTRIES[0]["network"])
    visit.page.evaluate("document.getElementById('message').textContent = ''")
    choose_file(visit, "wrong.onnx", content())
    text = visit.page.locator("#message").text_content() or ""
    assert text.startswith(f"wrong.onnx {message}")
    assert "\n" not in text
    click_example(visit, 6)
    assert set(shown(visit)) == {"6"}


def test_the_page_itself_lets_nothing_out(open_page):
    """Its policy refuses what leads elsewhere; and these tests would see it."""
    visit = open_page(**DESK)
    result = visit.page.evaluate("fetch('https://example.org/').then(() => 'sent', (error) => error.name)")
    assert result == "TypeError"
    assert any("Content Security Policy" in fault for fault in visit.faults)
