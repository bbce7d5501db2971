"""The page of demo/, in a browser without a window and without network.

Skipped where there is no Chromium, no Playwright, no npm, or no models/.
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
from tests.demo_page import OpenPage, Visit, answers, canvas_images, draw, open_pages, page_logits
from tests.helpers import ROOT

DEMO, MODELS = ROOT / "demo", ROOT / "models"
LIST = MODELS / "models.json"
ENTRIES = json.loads(LIST.read_text())["models"] if LIST.exists() else []
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1180, "height": 900}}

SHARE = 0.95  # of 200 drawn digits 196 were read; three standard errors less
NONE = "\N{EN DASH}"  # what the page shows for an empty canvas


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


# ------------------------------------------------------------------------------------------- the pure parts


def test_preparation_without_a_browser():
    if shutil.which("node") is None:
        pytest.skip("no node")
    answer = run_npm("test")
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "run npm ci"),
        (["--models", "none"], "models.json, the list"),
        (["--models", "models"], "a/model.onnx"),
        (["--models", "empty", "--out", "models"], "is not this page and not empty"),
        (["--models", "empty", "--out", "build.mjs"], "is not this page and not empty"),
        (["--modles", "models"], "--modles"),
    ],
)
def test_a_build_that_cannot_be_says_so(arguments, message, tmp_path):
    """And deletes nothing."""
    if shutil.which("node") is None:
        pytest.skip("no node")
    shutil.copy(DEMO / "build.mjs", tmp_path)
    if arguments:
        (tmp_path / "node_modules" / "onnxruntime-web").mkdir(parents=True)
    for name, entries in (("models", [{"folder": "a"}]), ("empty", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "models.json").write_text(json.dumps({"models": entries}))
    before = sorted(tmp_path.rglob("*"))
    command = ["node", "build.mjs", *arguments]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (answer.returncode, len(answer.stderr.splitlines())) == (2, 1)
    assert message in answer.stderr
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------------------------------- the answers


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["folder"])
def test_logits_are_those_of_onnx_runtime_in_python(entry, count, visit, mnist):
    """MNIST's test images through the page's own inference.

    Both runtimes round float32 sums in an order of their own, and each may be as far from float64 as
    `export.verify` allows a file. Of the 600,000 logits of six networks one differed by 1.1e-5, all others by
    less than that limit.
    """
    images = mnist.val_images[:count]
    file = f"{entry['folder']}/model.onnx"
    expected = run_model((MODELS / file).read_bytes(), to_unit(images), 100)[0]
    logits = page_logits(visit, f"models/{file}", images)
    assert logits.shape == expected.shape
    limit = max(TOLERANCE, RELATIVE_TOLERANCE * float(np.abs(expected).max()))
    difference = np.abs(logits - expected)
    assert difference.max() <= 2 * limit
    assert (difference > limit).sum() <= count // 10_000
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    if count == 10_000:
        assert (logits.argmax(1) == mnist.val_labels).mean() == pytest.approx(entry["accuracy"], abs=5e-5)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_preparation_leaves_mnist_as_it_is(count, visit, mnist):
    """All test images but three, whose longer side is 19 pixels: they become larger by one."""
    images = mnist.val_images[:count]
    prepared = visit.page.evaluate(
        """async (text) => {
          const { prepare } = await import("./preparation.js");
          const images = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
          let result = "";
          for (let start = 0; start < images.length; start += 784) {
            result += String.fromCharCode(...prepare(images.subarray(start, start + 784), 28));
          }
          return btoa(result);
        }""",
        base64.b64encode(images.tobytes()).decode(),
    )
    prepared = np.frombuffer(base64.b64decode(prepared), np.uint8).reshape(images.shape)
    changed = np.flatnonzero((prepared != images).any((1, 2)))
    longest = [max(np.ptp(np.nonzero(image), axis=1)) + 1 for image in images]
    assert set(changed) == set(np.flatnonzero(np.array(longest) != 20))
    if count == 10_000:
        assert len(changed) == 3


def test_examples_in_every_network_and_without_a_server(open_page):
    """Once the models are loaded the page needs nobody; every network reads its own examples."""
    visit = open_page(**DESK)
    networks = list(dict.fromkeys(entry["network"] for entry in ENTRIES))
    click_example(visit, 5)
    for network in [*networks[1:], networks[0]]:
        folders = [entry["folder"] for entry in ENTRIES if entry["network"] == network]
        visit.page.locator("#network").select_option(network)
        visit.page.wait_for_selector(f"#maps article:nth-child({len(folders)}) .channels")
        visit.wait()
    visit.page.context.set_offline(True)
    for network in networks:
        visit.page.locator("#network").select_option(network)
        count = sum(entry["network"] == network for entry in ENTRIES)
        assert visit.page.locator(".answer").count() == count
        for digit in range(10):
            click_example(visit, digit)
            assert shown(visit) == [str(digit)] * count, network
    visit.page.context.close()
    assert visit.faults == []


def test_a_network_that_cannot_be_loaded(open_page):
    """The page says so, goes on with the one it has, and tries again when it is asked to."""
    visit = open_page(**DESK)
    select, message = visit.page.locator("#network"), visit.page.locator("#message")
    first, other = ENTRIES[0]["network"], ENTRIES[-1]["network"]
    visit.page.context.set_offline(True)
    select.select_option(other)
    visit.page.wait_for_function("() => document.getElementById('message').textContent")
    assert "The server does not answer" in (message.text_content() or "")
    assert select.input_value() == first
    visit.page.context.set_offline(False)
    select.select_option(other)
    visit.page.wait_for_function("() => !document.getElementById('message').textContent")
    click_example(visit, 4)
    assert set(shown(visit)) == {"4"}
    assert select.input_value() == other
    visit.page.context.close()


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


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_digits_drawn_with_the_mouse_are_read(count, visit, mnist, rng):
    """At random places in three sizes; shown is what the model says of the image that the page prepared.

    The same drawings, only shrunk, are read worse.
    """
    chosen = np.linspace(0, 9999, count).astype(int)
    right, shrunk_right = 0, 0
    for index, image in enumerate(mnist.val_images[chosen]):
        draw(visit, place(ink_strokes(image), (0.4, 0.6, 0.8)[index % 3], rng), 0)
        digits = [digit for digit, _, _ in answers(visit)]
        images = canvas_images(visit)
        file = f"models/{ENTRIES[0]['folder']}/model.onnx"
        prepared, shrunk = page_logits(visit, file, images).argmax(1)
        assert digits[0] == prepared
        right += prepared == mnist.val_labels[chosen[index]]
        shrunk_right += shrunk == mnist.val_labels[chosen[index]]
    print(f"{right} of {count} right, {shrunk_right} only shrunk")
    assert right >= (SHARE * count if count > 100 else count - 1)
    assert count < 100 or shrunk_right < right


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


def test_an_empty_canvas_gives_none(visit):
    click_example(visit, 3)
    assert shown(visit)[0] == "3"
    visit.page.locator("#clear").click()
    visit.wait()
    assert set(shown(visit)) == {NONE}
    assert answers(visit)[0][0] == -1
    assert visit.page.locator("#status").text_content() == "Nothing is drawn."


def test_undo_takes_back_a_stroke(visit):
    click_example(visit, 4)  # two strokes
    image = visit.page.locator("#prepared").screenshot()
    visit.page.locator("#undo").click()
    visit.wait()
    assert visit.page.locator("#prepared").screenshot() != image
    visit.page.keyboard.press("Control+z")
    visit.wait()
    assert set(shown(visit)) == {NONE}
    visit.page.locator("#undo").click()  # of nothing, which is no error
    visit.wait()


def test_drawing_by_keyboard(visit):
    """A vertical line is a one, and a screen reader is told so."""
    page = visit.page
    page.locator("#canvas").focus()
    for _ in range(9):
        page.keyboard.press("ArrowUp")
    for _ in range(3):  # held down
        page.keyboard.down("Space")
    page.keyboard.up("Space")
    for _ in range(18):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
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
    visit.wait()
    assert set(shown(visit)) == {"1"}
    assert visit.page.evaluate("[scrollY, document.documentElement.scrollWidth]") == [0, 360]
    visit.page.locator("#layers summary").click()
    visit.wait()
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
    visit.page.context.close()
    assert visit.faults == []


def test_points_between_two_frames_are_drawn(visit):
    """A browser reports one move a frame; what was in between is asked for."""
    visit.page.evaluate("""() => {
      const canvas = document.getElementById("canvas");
      const { left, top, width } = canvas.getBoundingClientRect();
      const at = (type, x, y, more) => {
        const [clientX, clientY] = [left + x * width, top + y * width];
        return new PointerEvent(type, { pointerId: 1, clientX, clientY, ...more });
      };
      canvas.setPointerCapture = () => {}; // there is no such pointer
      canvas.dispatchEvent(at("pointerdown", 0.3, 0.2));
      const between = [at("pointermove", 0.7, 0.2), at("pointermove", 0.7, 0.8)];
      canvas.dispatchEvent(at("pointermove", 0.3, 0.8, { coalescedEvents: between }));
      canvas.dispatchEvent(at("pointerup", 0.3, 0.8));
      delete canvas.setPointerCapture;
    }""")
    visit.wait()
    columns = np.flatnonzero(canvas_images(visit)[1].any(0))
    assert columns[-1] - columns[0] > 9  # the stroke went to the right, not straight down


# ----------------------------------------------------------------------------------- layers and occlusion


def test_feature_maps_and_occlusion(visit, mnist):
    """What the page computes for its pictures, against ONNX Runtime in Python."""
    image, folder = mnist.val_images[0], ENTRIES[0]["folder"]
    expected = run_outputs(MODELS / folder / "feature-maps.onnx", image)
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
        [folder, image.ravel().tolist()],
    )
    assert [name for name, _ in maps] == list(expected)[2:]
    for name, values in maps:
        np.testing.assert_allclose(values, expected[name].ravel(), rtol=0, atol=2e-5)

    content = (MODELS / folder / "model.onnx").read_bytes()
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
    folder = MODELS / ENTRIES[0]["folder"]
    click_example(visit, 2)
    choose_file(visit, "mine.onnx", (folder / "feature-maps.onnx").read_bytes())
    visit.wait()
    assert shown(visit) == ["2"]
    visit.page.wait_for_selector(".channels canvas")
    choose_file(visit, "plain.onnx", (folder / "model.onnx").read_bytes())
    visit.page.wait_for_selector("text=export it with --feature-maps")
    assert shown(visit) == ["2"]
    visit.page.locator("#network").select_option(ENTRIES[0]["network"])
    visit.page.wait_for_selector(".answer >> nth=1")
    assert visit.faults == []


def another_network() -> bytes:
    model = onnx.load(MODELS / ENTRIES[0]["folder"] / "model.onnx")
    for node in model.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]
    model.graph.input[0].name = "picture"
    return model.SerializeToString()


def one_channel_more() -> bytes:
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 1, 14, 14])
    outputs = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 196])
        for name in ("logits", "probabilities")
    ]
    nodes = [onnx.helper.make_node("Flatten", ["image"], [output.name]) for output in outputs]
    graph = onnx.helper.make_graph(nodes, "other", [image], outputs)
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "is no ONNX file"),
        (lambda: b"PK\x03\x04 not a model", "is no ONNX file"),
        (lambda: (MODELS / ENTRIES[0]["folder"] / "model.onnx").read_bytes()[:9000], "is no ONNX file"),
        (another_network, "is another network"),
        (one_channel_more, "is another network"),
    ],
    ids=["empty", "archive", "truncated", "input", "shape"],
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
