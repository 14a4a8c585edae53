"""What is no regular file is refused at once, wherever data is read from."""

import os
import socket
import stat
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conftest import photo
from fastmim.data.loading.channel_stats import measure_stats
from fastmim.data.sources.base import FileImages
from fastmim.data.sources.files import MOST_BYTES, open_regular, read_regular
from fastmim.data.sources.open import open_images
from fastmim.errors import UsageError

SECONDS = 20.0  # more than any reading takes, less than for ever


def in_time(function, *arguments):
    """What it returns or raises; the test fails where it waits."""
    found = []

    def run():
        try:
            found.append(function(*arguments))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert found, "it waits"
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def make(kind, path):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to a fifo":
        os.mkfifo(f"{path}.fifo")
        path.symlink_to(f"{path}.fifo")
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(40 << 30)
    else:
        path.symlink_to(kind)


KINDS = {
    "fifo": "a FIFO, not a regular file",
    "link to a fifo": "a FIFO",
    "socket": "a socket",
    "/dev/zero": "a character device",
    "/dev/random": "a character device",
    "/dev/tty": "a character device|No such",
    "sparse": "too large",
    "/nonexistent": "No such file",
    "/tmp": "a folder",
}


@pytest.mark.parametrize(("kind", "said"), KINDS.items())
def test_a_file_that_is_none_is_refused_with_its_kind(tmp_path, monkeypatch, kind, said):
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 letters
    path = type(tmp_path)("a.jpg")
    make(kind, path)
    with pytest.raises(OSError, match=said) as raised:
        in_time(read_regular, path)
    assert raised.value.strerror


@pytest.mark.skipif(not os.path.exists("/proc/kmsg"), reason="no such system")
def test_files_of_proc_are_empty_and_not_waited_for():
    for path in ("/proc/kmsg", "/proc/self/environ"):
        try:
            assert in_time(read_regular, path) == b""
        except PermissionError:
            continue


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_names_that_no_file_has_are_errors_of_files(name):
    with pytest.raises(OSError, match="is not a valid file name"):
        read_regular(name)


def test_a_regular_file_is_read_whole_and_bounded(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_regular(tmp_path / "b") == b"x" * 100
    with pytest.raises(OSError, match="100 bytes, more than 99"):
        read_regular(tmp_path / "a", 99)
    assert MOST_BYTES == 2**30
    descriptor = open_regular(tmp_path / "a")
    assert stat.S_ISREG(os.fstat(descriptor).st_mode)
    os.close(descriptor)


def test_among_images_it_is_an_unreadable_one(tmp_path):
    for number in range(3):
        Image.fromarray(photo(number)).save(tmp_path / f"{number}.png")
    os.mkfifo(tmp_path / "a.png")
    os.symlink("/dev/zero", tmp_path / "b.png")
    stats = in_time(measure_stats, open_images(str(tmp_path)), 3, (8, 8), None, 0)
    assert (stats.images, stats.unreadable) == (3, 2)


@pytest.mark.parametrize("name", ["data", "data.tar", "data.parquet"])
def test_as_the_data_itself_it_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="a FIFO, not a regular file"):
        in_time(open_images, str(tmp_path / name))
    with pytest.raises(UsageError, match="a character device"):
        in_time(open_images, "/dev/zero")
    with pytest.raises(UsageError, match="does not exist"):
        open_images("a\0b")


def test_within_tables_it_is_refused(tmp_path):
    rows = pa.array([{"bytes": None, "path": str(tmp_path / "fifo")}, {"bytes": None, "path": "a\0b"}])
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table({"image": rows}), tmp_path / "rows" / "a.parquet")
    os.mkfifo(tmp_path / "fifo")
    source = open_images(str(tmp_path / "rows"))
    for row, said in enumerate(("a FIFO", "is not a valid file name")):
        with pytest.raises(OSError, match=said):
            in_time(source.read, row)
    os.mkfifo(tmp_path / "rows" / "b.parquet")
    with pytest.raises(UsageError, match=r"b\.parquet: a FIFO"):
        in_time(open_images, str(tmp_path / "rows"))


def test_within_saved_datasets_it_is_refused(tmp_path, photos):
    datasets = pytest.importorskip("datasets")
    files = sorted(str(path) for path in photos.rglob("*.jpg"))
    table = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "state.json").unlink()
    os.mkfifo(tmp_path / "saved" / "state.json")
    with pytest.raises(UsageError, match=r"state\.json: a FIFO"):
        in_time(open_images, str(tmp_path / "saved"))


def test_a_file_that_became_a_fifo_is_unreadable(tmp_path):
    Image.fromarray(photo(0)).save(tmp_path / "a.png")
    source = FileImages(str(tmp_path), ["a.png"])
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="a FIFO"):
        in_time(source.read, 0)
