"""The data: what both frameworks read, where MNIST comes from, damaged files, the digits and the splits.

Tests of MNIST itself take the four original files from the folder in MNIST_DIR.
"""

import gzip
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import jax_impl.data
import torch_impl.data
from recipe import data
from recipe.console import UserError
from recipe.data import HOLDOUT, MNIST_FINGERPRINT, ORIGINALS, fingerprint, load, read_originals
from tests.helpers import MNIST_DIR, ROOT

DIGITS_FINGERPRINT = "0f83262da69ae157b25bd9bd10b131800f101154f060d14aad2c4da3daae1813"
LABELS = ORIGINALS[3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache, or compresses one, which takes two seconds."""
    monkeypatch.setattr(np, "savez_compressed", np.savez)
    monkeypatch.delenv("MNIST_DIR", raising=False)
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mnist.npz"


@pytest.fixture(scope="module")
def mnist(originals):
    """MNIST decoded by this file's own hand, which the libraries are held against."""
    return tuple(
        np.frombuffer(originals[file.name], np.uint8)[file.header :].reshape(file.shape) for file in ORIGINALS
    )


@pytest.fixture
def offline(monkeypatch):
    def fail(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(data, "urlopen", fail)


def never(_):
    pytest.fail("the reader was called")


# ------------------------------------------------------------ both frameworks


@pytest.mark.slow
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
from recipe.data import fingerprint, read_originals
data = importlib.import_module("{package}.data")
assert not {{"torchvision", "tensorflow_datasets"}} & set(sys.modules), "the library was imported too early"
assert fingerprint(data.read_mnist(read_originals(pathlib.Path({MNIST_DIR!r})))) == "{MNIST_FINGERPRINT}"
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
    assert fingerprint(mnist) == MNIST_FINGERPRINT


@pytest.mark.parametrize("twin", [torch_impl.data, jax_impl.data], ids=["torch", "jax"])
def test_a_library_that_is_missing_is_named(twin, originals, monkeypatch):
    monkeypatch.setattr(data, "download_originals", lambda: originals)
    for library in ("torchvision", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, library, None)
    loaded = load("auto", None, twin.read_mnist)
    assert loaded.name == "digits"
    assert re.search("torchvision|tensorflow_datasets", loaded.note or "")


# ---------------------------------------------------- where MNIST comes from


def test_a_download_is_verified(originals, gzipped, monkeypatch):
    served = {f"{data.URL}{name}.gz": content for name, content in gzipped.items()}
    monkeypatch.setattr(data, "urlopen", lambda url, timeout: io.BytesIO(served[url]))
    assert data.URL.startswith("https://")
    assert data.download_originals() == originals
    served[f"{data.URL}{LABELS.name}.gz"] = gzip.compress(bytes(LABELS.size))
    with pytest.raises(OSError, match=r"t10k-labels-idx1-ubyte: .*another SHA-256"):
        data.download_originals()


def test_a_given_folder_is_what_the_reader_reads(folder, originals, mnist, monkeypatch):
    called = []
    loaded = load("auto", folder, lambda contents: called.append(contents) or mnist)
    assert (called, loaded.fingerprint, loaded.note) == ([originals], MNIST_FINGERPRINT, None)
    monkeypatch.setenv("MNIST_DIR", str(folder))
    assert load("auto", None, never).name == "mnist", "from the cache"
    monkeypatch.setenv("MNIST_DIR", str(folder / "nowhere"))
    with pytest.raises(UserError, match="there is no train-images"):
        load("auto", None, never)
    assert load("digits", None, never).name == "digits"


@pytest.mark.parametrize("choice", ["auto", "mnist"])
def test_a_missing_folder_or_file_is_named(choice, folder, tmp_path):
    with pytest.raises(UserError, match=r"there is no train-images.* in .*nowhere.*--data-dir"):
        load(choice, tmp_path / "nowhere", never)
    (folder / f"{LABELS.name}.gz").unlink()
    (folder / f"{LABELS.name}.gz").mkdir()
    with pytest.raises(UserError, match="there is no t10k-labels"):
        load(choice, folder, never)


@pytest.mark.parametrize(("layout", "suffix"), [("", ".gz"), ("MNIST/raw", "")])
@pytest.mark.parametrize("compressed", [True, False])  # some browsers decompress and keep the name
def test_layouts(layout, suffix, compressed, originals, gzipped, tmp_path):
    (tmp_path / layout).mkdir(parents=True, exist_ok=True)
    for name in originals:
        content = (gzipped if compressed else originals)[name]
        (tmp_path / layout / f"{name}{suffix}").write_bytes(content)
    assert read_originals(tmp_path) == originals


@pytest.mark.parametrize("damage", ["empty", "truncated gzip", "damaged gzip", "altered", "short", "long"])
def test_a_damaged_original_is_refused(damage, folder, originals, gzipped):
    content, packed = originals[LABELS.name], gzipped[LABELS.name]
    damaged = {
        "empty": b"",
        "truncated gzip": packed[:3000],
        "damaged gzip": packed[:1000] + bytes([packed[1000] ^ 1]) + packed[1001:],
        "altered": gzip.compress(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]),
        "short": content[:-1],
        "long": gzip.compress(content + bytes(2**22), 1),  # of which no more is unpacked than needed
    }[damage]
    path = folder / f"{LABELS.name}.gz"
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*fetch it again"):
        read_originals(folder)


# ------------------------------------------------------------------ the cache


@pytest.mark.parametrize("damage", ["garbage", "flipped", "folder"])
def test_a_damaged_cache_is_rebuilt_or_an_error(damage, mnist, originals, own_cache, monkeypatch):
    monkeypatch.setattr(data, "download_originals", lambda: originals)
    load("mnist", None, lambda _: mnist)
    assert load("mnist", None, never).train_images.flags.writeable  # else PyTorch warns
    content = bytearray(own_cache.read_bytes())
    own_cache.unlink()
    if damage == "folder":
        own_cache.mkdir()
    else:
        content[len(content) // 2] ^= 1
        own_cache.write_bytes(content if damage == "flipped" else b"\x80garbage")
    loaded = load("auto", None, lambda _: mnist)
    assert (loaded.fingerprint, str(own_cache) in (loaded.note or "")) == (MNIST_FINGERPRINT, True)
    if damage != "folder":
        assert (loaded.note or "").endswith("; rebuilt")
        own_cache.write_bytes(b"\x80garbage")
    monkeypatch.setattr(data, "download_originals", lambda: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError, match=rf"{own_cache} is damaged .* cannot be rebuilt .*delete it"):
        load("auto", None, never)


def test_an_unwritable_cache_does_not_stop_a_run(mnist, originals, own_cache, monkeypatch):
    monkeypatch.setattr(data, "download_originals", lambda: originals)
    own_cache.parent.write_text("a file where the folder should be")
    loaded = load("auto", None, lambda _: mnist)
    assert (loaded.fingerprint, "not cached" in (loaded.note or "")) == (MNIST_FINGERPRINT, True)


def test_a_reader_that_decodes_wrongly_is_found_out(mnist, originals, own_cache, monkeypatch):
    monkeypatch.setattr(data, "download_originals", lambda: originals)
    with pytest.raises(RuntimeError, match=MNIST_FINGERPRINT):
        load("auto", None, lambda _: (mnist[0], mnist[1][::-1], *mnist[2:]))
    assert not own_cache.exists()


def test_the_fingerprint_covers_every_array(mnist):
    for index in range(4):
        arrays = [array.copy() if place == index else array for place, array in enumerate(mnist)]
        arrays[index].flat[-1] ^= 1
        assert fingerprint(arrays) != MNIST_FINGERPRINT


# -------------------------------------------------- digits, splits, no network


def test_without_network_auto_takes_the_digits_and_says_why(offline, own_cache):
    loaded = load("auto", None, never)
    assert loaded.name == "digits"
    assert re.search(r"cannot be downloaded \(Name or service not known\).*--data-dir", loaded.note or "")
    assert "\n" not in (loaded.note or "") and not own_cache.exists()
    with pytest.raises(UserError, match=r"Name or service not known.*--data-dir"):
        load("mnist", None, never)


def test_the_digits_are_the_scans_enlarged():
    """Against Pillow's bilinear enlargement, which rounds elsewhere."""
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    pillow = pytest.importorskip("PIL.Image")
    digits, scans = load("digits", None, never), sklearn_datasets.load_digits()
    assert digits.fingerprint == DIGITS_FINGERPRINT
    assert (len(digits.train_images), len(digits.val_images)) == (1437, 360)
    order = np.argsort(np.random.Philox(key=0).random_raw(1797), kind="stable")
    labels = np.concatenate([digits.train_labels, digits.val_labels])
    np.testing.assert_array_equal(labels, scans.target[order])
    for index in (0, 700, 1436):
        scan = pillow.fromarray((scans.images[order[index]]).astype(np.float32))
        enlarged = np.asarray(scan.resize((20, 20), pillow.Resampling.BILINEAR)) * 255 / 16
        np.testing.assert_allclose(digits.train_images[index, 4:24, 4:24], enlarged, atol=0.51)


def test_a_holdout_is_the_end_of_the_training_images():
    test, holdout = (load("digits", None, never, split) for split in ("test", "holdout"))
    assert len(holdout.val_images) == len(holdout.val_labels) == HOLDOUT["digits"]
    for part in ("images", "labels"):
        joined = np.concatenate([getattr(holdout, f"train_{part}"), getattr(holdout, f"val_{part}")])
        np.testing.assert_array_equal(joined, getattr(test, f"train_{part}"))
    assert test.fingerprint == holdout.fingerprint
