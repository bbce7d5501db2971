"""The data: what both frameworks read, what is refused, and where MNIST comes from.

Tests of MNIST itself take the four original files from the folder in MNIST_DIR.
"""

import gzip
import hashlib
import io
import os
import re
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

import jax_impl.data
import torch_impl.data
from recipe import data
from recipe.data import HOLDOUT, MNIST_FINGERPRINT, ORIGINALS, Dataset, load, read_originals, split
from recipe.errors import UserError

MNIST_DIR = os.environ.get("MNIST_DIR")
DIGITS_FINGERPRINT = "0f83262da69ae157b25bd9bd10b131800f101154f060d14aad2c4da3daae1813"
TWINS = pytest.mark.parametrize("twin", [torch_impl.data, jax_impl.data], ids=["torch", "jax"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.delenv("MNIST_DIR", raising=False)
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mnist.npz"


@pytest.fixture(scope="session")
def contents():
    """The four files, decompressed, by name."""
    if not MNIST_DIR:
        pytest.skip("no MNIST: set MNIST_DIR to a folder with its four original files")
    return read_originals(Path(MNIST_DIR))


@pytest.fixture(scope="session")
def gzipped(contents):
    return {name: gzip.compress(content, 1) for name, content in contents.items()}


@pytest.fixture(scope="session")
def mnist(contents):
    """MNIST decoded by this file's own hand, which the libraries are held against."""
    arrays = [
        np.frombuffer(contents[file.name], np.uint8)[file.header :].reshape(file.shape) for file in ORIGINALS
    ]
    return Dataset("mnist", *arrays)


@pytest.fixture(scope="session")
def cached(mnist, tmp_path_factory):
    """The cache file that a run leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCKSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        load("auto", None, lambda originals: mnist)
        return (data.cache_folder() / "mnist.npz").read_bytes()


@pytest.fixture
def warm_cache(own_cache, cached):
    own_cache.parent.mkdir()
    own_cache.write_bytes(cached)
    return own_cache


@pytest.fixture
def folder(tmp_path, contents, gzipped):
    """A faultless data folder, to be damaged: labels gzipped, images not, which is quicker."""
    folder = tmp_path / "originals"
    folder.mkdir()
    for name in contents:
        if "images" in name:
            (folder / name).write_bytes(contents[name])
        else:
            (folder / f"{name}.gz").write_bytes(gzipped[name])
    return folder


def offline(originals):
    raise OSError("Name or service not known")


def never(originals):
    pytest.fail("the reader was called")


# ----------------------------------------------------------------------------------------- both frameworks


@TWINS
def test_both_frameworks_read_the_same_arrays(twin, contents, mnist, capfd):
    before = set(Path(tempfile.gettempdir()).iterdir())
    dataset = twin.read_mnist(Path(MNIST_DIR or ""))
    left = {path.name for path in set(Path(tempfile.gettempdir()).iterdir()) - before}
    assert not [name for name in left if "lockstep" in name or "tfds" in name]
    assert capfd.readouterr() == ("", "")
    for name in data.ARRAYS:
        array = getattr(dataset, name)
        assert array.dtype == np.uint8
        assert array.flags.writeable  # torch.from_numpy warns otherwise
        np.testing.assert_array_equal(array, getattr(mnist, name))
    assert dataset.name == "mnist"
    assert dataset.fingerprint == MNIST_FINGERPRINT


@pytest.mark.parametrize(("twin", "other"), [("torch_impl", "jax"), ("jax_impl", "torch")])
def test_neither_tensorflow_nor_the_other_framework_is_imported(twin, other, contents, tmp_path):
    # An installed TensorFlow must stay unused too; this one says so when it is imported.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    program = f"""
import importlib, pathlib, sys
data = importlib.import_module("{twin}.data")
assert not {{"torchvision", "tensorflow_datasets"}} & set(sys.modules), "the library was imported too early"
assert data.read_mnist(pathlib.Path({MNIST_DIR!r})).fingerprint == "{MNIST_FINGERPRINT}"
assert not {{"tensorflow", "{other}"}} & set(sys.modules), sys.modules
"""
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, check=True)


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
def test_download(twin, mirror, contents, own_cache):
    for file in ORIGINALS:
        published = Path(MNIST_DIR or "") / f"{file.name}.gz"
        if not published.exists():
            pytest.skip("MNIST_DIR holds no gzipped files to serve")
        (mirror / published.name).write_bytes(published.read_bytes())
    assert load("mnist", None, twin.read_mnist).dataset.fingerprint == MNIST_FINGERPRINT
    assert own_cache.exists()


@TWINS
def test_altered_download_is_not_used(twin, mirror, gzipped, contents):
    for file in ORIGINALS:
        content = gzipped[file.name]
        if file.name.startswith("train-labels"):
            content = gzip.compress(bytes(file.size))
        (mirror / f"{file.name}.gz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be downloaded"):
        load("mnist", None, twin.read_mnist)


@TWINS
def test_unreachable_mirror_is_an_os_error(twin, monkeypatch):
    monkeypatch.setattr(twin, "URL", "http://127.0.0.1:9/")  # the discard port: nobody listens
    with pytest.raises(OSError, match="refused"):
        twin.read_mnist(None)


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


# --------------------------------------------------------------------------------------- the original files


def test_table_of_originals_agrees_with_torchvision():
    datasets = pytest.importorskip("torchvision.datasets")
    assert datasets.MNIST.resources == [(f"{file.name}.gz", file.gz_md5) for file in ORIGINALS]


def test_table_of_originals_agrees_with_the_files(contents):
    for file in ORIGINALS:
        path = Path(MNIST_DIR or "") / f"{file.name}.gz"
        if not path.exists():
            pytest.skip("MNIST_DIR holds no gzipped files")
        published = path.read_bytes()
        assert len(published) == file.gz_size
        assert hashlib.sha256(published).hexdigest() == file.gz_sha256
        assert hashlib.md5(published).hexdigest() == file.gz_md5
        magic, *shape = struct.unpack(f">I{len(file.shape)}I", contents[file.name][: file.header])
        assert (magic, tuple(shape)) == (0x0800 + len(file.shape), file.shape)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", ["", "MNIST/raw"])
def test_layouts(layout, suffix, contents, gzipped, tmp_path):
    place = tmp_path / "given" / layout
    place.mkdir(parents=True)
    for name in contents:
        (place / f"{name}{suffix}").write_bytes((gzipped if suffix else contents)[name])
    assert read_originals(tmp_path / "given") == contents


def test_given_folder_is_what_the_reader_reads(folder, mnist):
    called = []
    loaded = load("auto", folder, lambda originals: called.append(originals) or mnist)
    assert (called, loaded.dataset, loaded.note) == ([folder], mnist, None)


def test_uncompressed_file_under_a_gz_name(contents, tmp_path):
    """Some browsers decompress what they download and keep its name."""
    for name, content in contents.items():
        (tmp_path / f"{name}.gz").write_bytes(content)
    assert read_originals(tmp_path) == contents


@pytest.mark.parametrize("choice", ["auto", "mnist"])
def test_missing_folder(choice, tmp_path):
    with pytest.raises(UserError, match=r"no data folder .*nowhere.*--data-dir"):
        load(choice, tmp_path / "nowhere", never)


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no data folder"):
        read_originals(tmp_path / "file")


@pytest.mark.parametrize("choice", ["auto", "mnist"])
def test_missing_file_is_named(choice, folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"lacks t10k-labels-idx1-ubyte \("):
        load(choice, folder, never)


def test_faulty_folder_is_an_error_even_with_a_good_cache(folder, warm_cache):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz is truncated"):
        load("auto", folder, never)


def test_variable_names_the_folder(folder, mnist, monkeypatch):
    monkeypatch.setenv("MNIST_DIR", str(folder))
    assert load("auto", None, lambda originals: mnist if originals == folder else None).dataset is mnist
    monkeypatch.setenv("MNIST_DIR", str(folder / "nowhere"))
    with pytest.raises(UserError, match="no data folder"):
        load("auto", None, never)
    assert load("digits", None, never).dataset.name == "digits"
    monkeypatch.setenv("MNIST_DIR", "")  # as good as unset
    assert load("auto", None, never).dataset.name == "mnist"


LABELS = ORIGINALS[3]


def refusal(folder: Path, content: bytes) -> str:
    """What is said of the test labels if this is their content."""
    path = folder / f"{LABELS.name}.gz"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_originals(folder)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_truncated(folder, contents, gzipped):
    assert "truncated" in refusal(folder, b"")
    assert "gzip stream has no end" in refusal(folder, gzipped[LABELS.name][:3000])
    assert "gzip stream has no end" in refusal(folder, gzipped[LABELS.name][:-4])  # only the checksum
    assert "10,007 bytes decompressed, 10,008 expected" in refusal(folder, contents[LABELS.name][:-1])
    assert "4 bytes decompressed" in refusal(folder, gzip.compress(contents[LABELS.name][:4]))


def test_damaged_gzip(folder, gzipped):
    damaged = bytearray(gzipped[LABELS.name])
    damaged[1000] ^= 1
    assert re.search("cannot read|altered|truncated", refusal(folder, bytes(damaged)))
    assert "CRC" in refusal(folder, gzipped[LABELS.name][:-8] + bytes(4) + gzipped[LABELS.name][-4:])


def test_altered_byte_names_both_hashes(folder, contents):
    altered = bytearray(contents[LABELS.name])
    altered[5000] ^= 1
    message = refusal(folder, gzip.compress(altered))
    assert LABELS.sha256 in message
    assert hashlib.sha256(altered).hexdigest() in message


def test_lying_header_allocates_nothing(folder, contents):
    lying = struct.pack(">II", 0x0801, 2**32 - 1) + contents[LABELS.name][8:]
    assert "altered" in refusal(folder, lying)


def test_gzip_bomb_is_not_unpacked(tmp_path):
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(200 * 2**20), 1))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"longer than 10,008 bytes"):
            data.read_original(bomb, LABELS)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_folder_in_place_of_a_file(folder):
    (folder / f"{LABELS.name}.gz").unlink()
    (folder / f"{LABELS.name}.gz").mkdir()
    with pytest.raises(UserError, match="lacks t10k-labels"):
        read_originals(folder)


# ------------------------------------------------------------------------------------------------- the cache


def test_cache_hit_needs_no_reader(mnist, own_cache):
    first = load("auto", None, lambda originals: mnist)
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
    loaded = load("auto", None, lambda originals: mnist)
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
    loaded = load("auto", None, lambda originals: mnist)
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
        load("auto", None, lambda originals: swapped)
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


# --------------------------------------------------------------------------------- digits, splits, no network


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
        load("auto", folder, lambda originals: (_ for _ in ()).throw(OSError("No space left on device")))


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
