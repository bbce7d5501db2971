"""The four original files: which layouts are read, and how damage is refused.

The files are taken from the folder in MNIST_DIR.
"""

import gzip
import hashlib
import re
import struct
import tracemalloc
from pathlib import Path

import pytest

from recipe.console import UserError
from recipe.data import ORIGINALS, check_reachable, read_original, read_originals
from tests.helpers import MNIST_DIR

LABELS = ORIGINALS[3]


def test_table_of_originals_agrees_with_torchvision():
    datasets = pytest.importorskip("torchvision.datasets")
    assert datasets.MNIST.resources == [(f"{file.name}.gz", file.gz_md5) for file in ORIGINALS]


def test_table_of_originals_agrees_with_the_files(originals):
    for file in ORIGINALS:
        path = Path(MNIST_DIR or "") / f"{file.name}.gz"
        if not path.exists():
            pytest.skip("MNIST_DIR holds no gzipped files")
        published = path.read_bytes()
        assert len(published) == file.gz_size
        assert hashlib.sha256(published).hexdigest() == file.gz_sha256
        assert hashlib.md5(published).hexdigest() == file.gz_md5
        magic, *shape = struct.unpack(f">I{len(file.shape)}I", originals[file.name][: file.header])
        assert (magic, tuple(shape)) == (0x0800 + len(file.shape), file.shape)


@pytest.mark.parametrize(("layout", "suffix"), [("", ".gz"), ("MNIST/raw", "")])
def test_layouts(layout, suffix, originals, gzipped, tmp_path):
    inside = tmp_path / "folder" / layout
    inside.mkdir(parents=True)
    for name in originals:
        (inside / f"{name}{suffix}").write_bytes((gzipped if suffix else originals)[name])
    assert read_originals(tmp_path / "folder") == originals


def test_uncompressed_file_under_a_gz_name(originals, tmp_path):
    """Some browsers decompress what they download and keep its name."""
    for name, content in originals.items():
        (tmp_path / f"{name}.gz").write_bytes(content)
    assert read_originals(tmp_path) == originals


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no data folder"):
        read_originals(tmp_path / "file")


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"no data folder .*nowhere.*--data-dir"):
        read_originals(tmp_path / "nowhere")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"lacks t10k-labels-idx1-ubyte \("):
        read_originals(folder)


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


def test_truncated(folder, originals, gzipped):
    assert "truncated" in refusal(folder, b"")
    assert "gzip stream has no end" in refusal(folder, gzipped[LABELS.name][:3000])
    assert "gzip stream has no end" in refusal(folder, gzipped[LABELS.name][:-4])  # only the checksum
    assert "10,007 bytes decompressed, 10,008 expected" in refusal(folder, originals[LABELS.name][:-1])
    assert "4 bytes decompressed" in refusal(folder, gzip.compress(originals[LABELS.name][:4]))


def test_damaged_gzip(folder, gzipped):
    damaged = bytearray(gzipped[LABELS.name])
    damaged[1000] ^= 1
    assert re.search("cannot read|altered|truncated", refusal(folder, bytes(damaged)))
    assert "CRC" in refusal(folder, gzipped[LABELS.name][:-8] + bytes(4) + gzipped[LABELS.name][-4:])


def test_altered_byte_names_both_hashes(folder, originals):
    altered = bytearray(originals[LABELS.name])
    altered[5000] ^= 1
    message = refusal(folder, gzip.compress(altered))
    assert LABELS.sha256 in message
    assert hashlib.sha256(altered).hexdigest() in message


def test_lying_header_allocates_nothing(folder, originals):
    lying = struct.pack(">II", 0x0801, 2**32 - 1) + originals[LABELS.name][8:]
    assert "altered" in refusal(folder, lying)


def test_gzip_bomb_is_not_unpacked(tmp_path):
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(200 * 2**20), 1))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"longer than 10,008 bytes"):
            read_original(bomb, LABELS)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_folder_in_place_of_a_file(folder):
    (folder / f"{LABELS.name}.gz").unlink()
    (folder / f"{LABELS.name}.gz").mkdir()
    with pytest.raises(UserError, match="lacks t10k-labels"):
        read_originals(folder)


def test_an_unreachable_server_is_an_os_error():
    with pytest.raises(OSError, match="refused"):
        check_reachable("http://127.0.0.1:9/")  # the discard port: nobody listens
