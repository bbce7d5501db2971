"""The data: what both frameworks read, where MNIST comes from, the cache, the digits and the splits.

Tests of MNIST itself take the four original files from the folder in MNIST_DIR.
"""

import gzip
import io
import os
import re
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

import jax_impl.data
import torch_impl.data
from recipe import data
from recipe.console import UserError
from recipe.data import HOLDOUT, MNIST_FINGERPRINT, ORIGINALS, Dataset, load, split
from tests.helpers import MNIST_DIR, ROOT

DIGITS_FINGERPRINT = "0f83262da69ae157b25bd9bd10b131800f101154f060d14aad2c4da3daae1813"
TWINS = pytest.mark.parametrize("twin", [torch_impl.data, jax_impl.data], ids=["torch", "jax"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache; only `cached` is compressed, which takes two seconds."""
    monkeypatch.setattr(np, "savez_compressed", np.savez)
    monkeypatch.delenv("MNIST_DIR", raising=False)
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mnist.npz"


@pytest.fixture(scope="module")
def mnist(originals):
    """MNIST decoded by this file's own hand, which the libraries are held against."""
    arrays = [
        np.frombuffer(originals[file.name], np.uint8)[file.header :].reshape(file.shape) for file in ORIGINALS
    ]
    return Dataset("mnist", *arrays)


@pytest.fixture(scope="module")
def cached(mnist, tmp_path_factory):
    """The cache file that a run leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        load("auto", None, lambda _: mnist)
        return (data.cache_folder() / "mnist.npz").read_bytes()


@pytest.fixture
def warm_cache(own_cache, cached):
    own_cache.parent.mkdir()
    own_cache.write_bytes(cached)
    return own_cache


def offline(_):
    raise OSError("Name or service not known")


def never(_):
    pytest.fail("the reader was called")


# ----------------------------------------------------------------------------------------- both frameworks


@pytest.mark.subprocess
@pytest.mark.parametrize(("package", "other"), [("torch_impl", "jax"), ("jax_impl", "torch")])
def test_both_frameworks_read_the_same_arrays(package, other, mnist, tmp_path):
    """Without TensorFlow or the other framework, without output, and without leaving a file."""
    # An installed TensorFlow must stay unused too; this one says so when it is imported.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    (tmp_path / "tmp").mkdir()
    program = f"""
import importlib, pathlib, sys
data = importlib.import_module("{package}.data")
assert not {{"torchvision", "tensorflow_datasets"}} & set(sys.modules), "the library was imported too early"
dataset = data.read_mnist(pathlib.Path({MNIST_DIR!r}))
assert (dataset.name, dataset.fingerprint) == ("mnist", "{MNIST_FINGERPRINT}")
assert dataset.train_images.flags.writeable and dataset.test_labels.flags.writeable  # else torch warns
assert not {{"tensorflow", "{other}"}} & set(sys.modules), sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    left = [path.name for path in (tmp_path / "tmp").iterdir()]
    assert not [name for name in left if "lockstep" in name or "tfds" in name]
    assert mnist.fingerprint == MNIST_FINGERPRINT


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server in place of both libraries' mirrors; returns its folder."""
    root = tmp_path / "mirror"
    root.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for twin in (torch_impl.data, jax_impl.data):
            monkeypatch.setattr(twin, "URL", f"http://127.0.0.1:{server.server_port}/")
        yield root
        server.shutdown()


@TWINS
def test_download(twin, mirror, originals, own_cache):
    for file in ORIGINALS:
        published = Path(MNIST_DIR or "") / f"{file.name}.gz"
        if not published.exists():
            pytest.skip("MNIST_DIR holds no gzipped files to serve")
        (mirror / published.name).write_bytes(published.read_bytes())
    assert load("mnist", None, twin.read_mnist).dataset.fingerprint == MNIST_FINGERPRINT
    assert own_cache.exists()


@TWINS
def test_altered_download_is_not_used(twin, mirror, gzipped, originals):
    for file in ORIGINALS:
        content = gzipped[file.name]
        if file.name.startswith("train-labels"):
            content = gzip.compress(bytes(file.size))
        (mirror / f"{file.name}.gz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be downloaded"):
        load("mnist", None, twin.read_mnist)


def test_an_error_without_a_message_is_named_by_its_kind():
    def reader(_):
        raise ConnectionAbortedError

    assert "cannot be downloaded (ConnectionAbortedError), hence" in (load("auto", None, reader).note or "")


@TWINS
def test_library_missing(twin, monkeypatch):
    for library in ("torchvision", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, library, None)
    loaded = load("auto", None, twin.read_mnist)
    assert loaded.dataset.name == "digits"
    assert re.search("torchvision|tensorflow_datasets", loaded.note or "")


@pytest.mark.subprocess
def test_a_torchvision_that_does_not_fit_is_named(tmp_path):
    """PyTorch without CUDA and torchvision with it raise a RuntimeError that says nothing of the kind."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    program = "import torch_impl.data; torch_impl.data.read_mnist(None)"
    paths = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | paths, capture_output=True, text=True, check=False
    )
    message = "torchvision does not fit PyTorch: operator torchvision::nms does not exist; install both"
    assert f"ImportError: {message}" in answer.stderr


# ---------------------------------------------------------------------------------- where MNIST comes from


def test_given_folder_is_what_the_reader_reads(folder, mnist):
    called = []
    loaded = load("auto", folder, lambda path: called.append(path) or mnist)
    assert (called, loaded.dataset, loaded.note) == ([folder], mnist, None)


@pytest.mark.parametrize("choice", ["auto", "mnist"])
def test_missing_folder(choice, tmp_path):
    with pytest.raises(UserError, match=r"no data folder .*nowhere.*--data-dir"):
        load(choice, tmp_path / "nowhere", never)


def test_faulty_folder_is_an_error_even_with_a_good_cache(folder, warm_cache):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz is truncated"):
        load("auto", folder, never)


def test_variable_names_the_folder(folder, mnist, monkeypatch):
    monkeypatch.setenv("MNIST_DIR", str(folder))
    assert load("auto", None, lambda path: mnist if path == folder else None).dataset is mnist
    monkeypatch.setenv("MNIST_DIR", str(folder / "nowhere"))
    with pytest.raises(UserError, match="no data folder"):
        load("auto", None, never)
    assert load("digits", None, never).dataset.name == "digits"
    monkeypatch.setenv("MNIST_DIR", "")  # as good as unset
    assert load("auto", None, never).dataset.name == "mnist"


# ----------------------------------------------------------------------------------------------- the cache


def test_cache_hit_needs_no_reader(mnist, own_cache):
    first = load("auto", None, lambda _: mnist)
    assert (first.note, list(own_cache.parent.iterdir())) == (None, [own_cache])
    second = load("mnist", None, never)
    assert (second.dataset.fingerprint, second.note) == (MNIST_FINGERPRINT, None)
    assert second.dataset.train_images.flags.writeable


def test_cache_after_verified_originals_needs_no_reader(folder, warm_cache):
    assert load("auto", folder, never).dataset.fingerprint == MNIST_FINGERPRINT


class Trap:
    """Unpickled, it stops the test."""

    def __reduce__(self):
        return pytest.fail, ("the cache was unpickled",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.array([Trap()], object) for name in data.ARRAYS})
    return buffer.getvalue()


def all_zero() -> bytes:
    buffer = io.BytesIO()
    shapes = [file.shape for file in ORIGINALS]
    np.savez_compressed(
        buffer, **{name: np.zeros(s, np.uint8) for name, s in zip(data.ARRAYS, shapes, strict=True)}
    )
    return buffer.getvalue()


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "flipped", "pickled", "zero", "folder"])
def test_damaged_cache_is_rebuilt_or_an_error(damage, mnist, cached, own_cache):
    flipped = bytearray(cached)
    flipped[len(cached) // 2] ^= 1
    own_cache.parent.mkdir()
    if damage == "folder":
        own_cache.mkdir()
    else:
        makers = {
            "empty": lambda: b"",
            "garbage": lambda: b"\x80garbage",
            "truncated": lambda: cached[:-1000],
            "flipped": lambda: bytes(flipped),
            "pickled": pickled,
            "zero": all_zero,
        }
        own_cache.write_bytes(makers[damage]())

    for choice in ("auto", "mnist"):  # never digits in silence
        with pytest.raises(
            UserError, match=rf"{own_cache} is damaged .* cannot be rebuilt .*not known.*delete it"
        ):
            load(choice, None, offline)
    loaded = load("auto", None, lambda _: mnist)
    assert loaded.dataset is mnist
    assert str(own_cache) in (loaded.note or "")
    assert "\n" not in (loaded.note or "")
    if damage == "folder":
        assert "stays so" in (loaded.note or "")
    else:
        assert "rebuilt" in (loaded.note or "")
        assert load("mnist", None, never).note is None


def test_unwritable_cache_does_not_stop_a_run(mnist, own_cache):
    own_cache.parent.write_text("a file where the folder should be")
    loaded = load("auto", None, lambda _: mnist)
    assert loaded.dataset is mnist
    assert "not cached" in (loaded.note or "")
    assert str(own_cache) in (loaded.note or "")


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("LOCKSTEP_CACHE", "/here")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert data.cache_folder() == Path("/here")
    monkeypatch.delenv("LOCKSTEP_CACHE")
    assert data.cache_folder() == Path("/there/lockstep-mnist")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert data.cache_folder() == Path("/home/somebody/.cache/lockstep-mnist")


def test_reader_that_decodes_wrongly_is_found_out(mnist, own_cache):
    swapped = Dataset(
        "mnist", mnist.train_images, mnist.train_labels[::-1], mnist.test_images, mnist.test_labels
    )
    with pytest.raises(RuntimeError, match=MNIST_FINGERPRINT):
        load("auto", None, lambda _: swapped)
    assert not own_cache.exists()


def test_fingerprint_covers_every_array(mnist):
    for name in data.ARRAYS:
        arrays = {other: getattr(mnist, other) for other in data.ARRAYS}
        arrays[name] = arrays[name].copy()
        arrays[name].flat[-1] ^= 1
        assert Dataset("mnist", **arrays).fingerprint != MNIST_FINGERPRINT
    small = [np.zeros((2, 3), np.uint8)] * 4
    turned = [np.zeros((3, 2), np.uint8)] * 4
    signed = [np.zeros((2, 3), np.int8)] * 4
    assert len({Dataset("digits", *arrays).fingerprint for arrays in (small, turned, signed)}) == 3


# ------------------------------------------------------------------------------ digits, splits, no network


def test_without_network_auto_takes_digits_and_says_why(own_cache):
    loaded = load("auto", None, offline)
    assert loaded.dataset.name == "digits"
    assert re.search(r"cannot be downloaded \(Name or service not known\).*--data-dir", loaded.note or "")
    assert "\n" not in (loaded.note or "")
    assert not own_cache.exists()


def test_without_network_mnist_says_what_to_do():
    with pytest.raises(UserError, match=r"Name or service not known.*--data-dir") as caught:
        load("mnist", None, offline)
    assert all(file.name in str(caught.value) for file in ORIGINALS)


def test_reader_that_fails_on_good_files_is_an_error(folder):
    with pytest.raises(UserError, match=r"cannot decode the files in .*No space"):
        load("auto", folder, lambda _: (_ for _ in ()).throw(OSError("No space left on device")))


def test_digits():
    digits, note = load("digits", None, never)
    assert (digits.name, note) == ("digits", None)
    assert digits.train_images.shape == (1437, 28, 28)
    assert digits.test_images.shape == (360, 28, 28)
    assert [len(digits.train_labels), len(digits.test_labels)] == [1437, 360]
    assert all(getattr(digits, name).dtype == np.uint8 for name in data.ARRAYS)
    for labels in (digits.train_labels, digits.test_labels):
        assert set(labels) == set(range(10))
    for images in (digits.train_images, digits.test_images):
        assert images.max() == 255
        assert not images[:, :4].any()
        assert not images[:, :, -4:].any()
    assert digits.fingerprint == load("digits", None, never).dataset.fingerprint == DIGITS_FINGERPRINT


def test_digits_are_the_scans_enlarged():
    """Against Pillow's bilinear enlargement, which rounds elsewhere."""
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    pillow = pytest.importorskip("PIL.Image")
    digits, scans = data.load_digits(), sklearn_datasets.load_digits()
    order = np.argsort(np.random.Philox(key=0).random_raw(1797), kind="stable")
    np.testing.assert_array_equal(
        np.concatenate([digits.train_labels, digits.test_labels]), scans.target[order]
    )
    for index in (0, 700, 1436):
        scan = pillow.fromarray((scans.images[order[index]]).astype(np.float32))
        enlarged = np.asarray(scan.resize((20, 20), pillow.Resampling.BILINEAR)) * 255 / 16
        np.testing.assert_allclose(digits.train_images[index, 4:24, 4:24], enlarged, atol=0.51)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_splits(name, request):
    dataset = data.load_digits() if name == "digits" else request.getfixturevalue("mnist")
    test = split(dataset, "test")
    assert test.train_images is dataset.train_images
    assert test.val_labels is dataset.test_labels
    holdout = split(dataset, "holdout")
    assert (
        len(holdout.val_images)
        == len(holdout.val_labels)
        == HOLDOUT[name]
        == {"mnist": 5000, "digits": 300}[name]
    )
    for part in ("images", "labels"):
        joined = np.concatenate([getattr(holdout, f"train_{part}"), getattr(holdout, f"val_{part}")])
        np.testing.assert_array_equal(joined, getattr(dataset, f"train_{part}"))
