"""Images of an uncompressed tar, found in one pass over its headers; files left out are counted."""

import errno
import io
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmim.data.sources.files import check_size, open_regular
from fastmim.data.sources.index import counted, is_hidden, is_image_name, left_out
from fastmim.data.sources.names import Named, NameList
from fastmim.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = tarfile.BLOCKSIZE
CHUNK = 2048 * BLOCK
MAGIC, MAGIC_AT = b"ustar", 257
EXTENDED = b"xgXLK"  # types of headers that extend the next header
PAX = b"xgX"  # types whose content is records
RECORD = re.compile(rb"\d+ [^=]+=")
MOST_EXTENDED = 1 << 20  # bytes of an extended header
MOST_LINKS = 40  # followed from a name to a file, the limit of Linux
# Exceptions that the standard library raises for invalid headers.
BAD_HEADER = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError)


class TarImages(Named):
    """Image files of an uncompressed tar, read at random from the tar; links are followed within the tar.

    Raises:
        tarfile.ReadError: the file is not a tar.
        UsageError: the tar is cut off.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        entries, self.notes = _index(path)
        self._names = NameList(name for name, _ in entries)
        self._places: NDArray[np.int64] = np.array([p for _, p in entries], dtype=np.int64).reshape(-1, 2)
        self._opened: tuple[int, int] | None = None  # (process, file descriptor)

    def read(self, index: int) -> bytes:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), open_regular(self._path))
        offset, size = (int(number) for number in self._places[index])
        check_size(size)
        return os.pread(self._opened[1], size, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


Place = tuple[int, int]  # offset, bytes


class _Links:
    """Links of a tar to other names of the same tar."""

    def __init__(self) -> None:
        self.files: dict[str, Place] = {}
        self._to: dict[str, str] = {}

    def add(self, member: tarfile.TarInfo) -> None:
        folder = posixpath.dirname(member.name) if member.issym() else ""
        self._to[plain(member.name)] = plain(posixpath.join(folder, member.linkname))

    def __len__(self) -> int:
        return len(self._to)

    def follow(self, name: str) -> Place | None:
        """Return the place of the file that a name leads to; None if the tar has no such file."""
        name = plain(name)
        for _ in range(MOST_LINKS):
            if name in self.files and name not in self._to:
                return self.files[name]
            parts = name.split("/")
            heads = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
            head = next((head for head in heads if head in self._to), None)
            if head is None:
                return None
            name = plain(self._to[head] + name[len(head) :])
        return None


def plain(name: str) -> str:
    """Normalise a path to the tar's top: without ``./``, a leading slash, or ``../`` above the top."""
    return posixpath.normpath("/" + name).lstrip("/")


def _index(path: str) -> tuple[list[tuple[str, Place]], tuple[str, ...]]:
    """Return the name and place of each image, in the tar's order, and the notes on the tar."""
    found: list[tuple[str, Place | None]] = []  # None: a link
    others: Counter[str] = Counter()
    left: Counter[str] = Counter()
    links = _Links()
    with _Headers(path) as headers:
        for member in headers:
            place = (member.offset_data, member.size)
            is_link = member.issym() or member.islnk()
            if is_link:
                links.add(member)
            elif member.isreg() and not member.issparse():
                links.files[plain(member.name)] = place
            *folders, base = plain(member.name).split("/")
            if not is_image_name(base.lstrip(".")):
                if not base.startswith(".") and not member.isdir() and not is_link:
                    others[posixpath.splitext(base)[1].lower()] += 1
            elif reason := _unusable(member, any(map(is_hidden, (*folders, base)))):
                left[reason] += 1
            elif not member.isdir():
                found.append((member.name, None if is_link else place))
    images = []
    for name, known in found:
        place_of = known or links.follow(name)
        if place_of is None:
            left["links to files that are not in the tar"] += 1
        else:
            images.append((name, place_of))
    notes = [*headers.notes, *left_out(others)]
    notes += [f"{counted(count, 'file')} left out: {which}" for which, count in left.items() if count]
    again = len(images) - len({plain(name) for name, _ in images})
    if again:
        have = "has" if again == 1 else "have"
        notes.append(f"{counted(again, 'image')} {have} the name of an earlier one: all are read")
    return images, tuple(f"{path}: {note}" for note in notes)


def _unusable(member: tarfile.TarInfo, hidden: bool) -> str | None:
    """Return why a member with the name of an image is left out; None for usable ones and for folders."""
    if member.isdir():
        return None
    if hidden:
        return "hidden, or in hidden folders"
    if member.issparse():
        return "stored with holes (sparse)"
    if not (member.isreg() or member.issym() or member.islnk()):
        return "devices or FIFOs"
    return None


class _Headers:
    """Iterate over the members of a tar, past damaged headers and into tars that follow its end mark."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.notes: list[str] = []
        self._damaged: list[int] = []  # offsets
        self._skipped = 0  # bytes

    def __enter__(self) -> "_Headers":
        self._file = open(open_regular(self.path), "rb", buffering=0)  # lseek and pread bypass buffers
        self._size = os.fstat(self._file.fileno()).st_size
        self._tar = tarfile.TarFile(fileobj=io.BytesIO(bytes(2 * BLOCK)), mode="r")
        self._tar.fileobj = self._file
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        offset, members, parts, ended = 0, 0, 1, False
        while offset < self._size:
            if not any(self._block(offset)):
                ended, offset = True, self._next_content(offset)
                continue
            try:
                member = self._member(offset)
            except UsageError:
                raise
            except BAD_HEADER as error:
                if not offset:
                    raise tarfile.ReadError(str(error)) from error
                after = self._next_header(offset + BLOCK)
                if after is None and ended:
                    self.notes.append(f"{self._size - offset:,} bytes after its end mark are not a tar")
                    break
                self._damaged.append(offset)
                self._skipped += (after or self._size) - offset
                offset, ended = after or self._size, False
                continue
            parts, ended = parts + ended, False
            members += 1
            yield member
            offset = self._tar.offset
        if self._damaged:
            self.notes.append(
                f"{counted(len(self._damaged), 'damaged header')}, the first at byte {self._damaged[0]:,}: "
                f"{self._skipped:,} bytes were skipped, with the files in them"
            )
        if parts > 1:
            self.notes.append(f"{parts} tars in one file, one after another; all are read")
        if members and not ended and not self._damaged:
            self.notes.append(
                f"it has no end mark, so it may be cut off after the last of its {members:,} entries"
            )

    def _member(self, offset: int) -> tarfile.TarInfo:
        """Return the member whose first header is at ``offset``; move the tar's offset to the next header."""
        block = self._block(offset)
        if len(block) < BLOCK and not offset:
            raise tarfile.ReadError("too short for a tar")
        if len(block) < BLOCK:
            raise self._cut(f"{BLOCK - len(block)} bytes of a header are missing")
        if block[156] in EXTENDED and tarfile.TarInfo.frombuf(block, "utf-8", "replace").size > MOST_EXTENDED:
            raise tarfile.ReadError("a header that is too large")
        if block[156] in PAX and not self._has_records(offset, block):
            raise tarfile.ReadError("an extended header without records")
        self._file.seek(offset)
        self._tar.offset = offset
        try:
            member = tarfile.TarInfo.fromtarfile(self._tar)
        except tarfile.TarError:
            if self._file.tell() < self._size or not _is_header(block):
                raise
            raise self._cut("the rest of a header is missing") from None
        if member.size < 0 or self._tar.offset <= offset:
            raise tarfile.ReadError("a header that points backwards")
        end = member.offset_data + member.size if member.isreg() and not member.issparse() else 0
        if end > self._size or self._tar.offset >= self._size + BLOCK:
            missing = max(end, self._tar.offset) - self._size
            raise self._cut(f"{missing:,} bytes are missing, of {member.name}")
        return member

    def _has_records(self, offset: int, block: bytes) -> bool:
        """Return whether a pax header is empty or begins with a record, "LENGTH KEYWORD=VALUE"."""
        size = tarfile.TarInfo.frombuf(block, "utf-8", "replace").size
        return size == 0 or RECORD.match(self._block(offset + BLOCK, min(size, BLOCK))) is not None

    def _cut(self, why: str) -> UsageError:
        return UsageError(f"data: {self.path} is cut off: {why}; copy it again, or unpack what is there")

    def _block(self, offset: int, length: int = BLOCK) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def _next_content(self, offset: int) -> int:
        """Return the offset of the first nonzero block from ``offset``; the file's size if there is none."""
        while offset < self._size:
            offset = self._past_hole(offset)
            chunk = self._block(offset, CHUNK)
            zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            if zeros < len(chunk):
                return offset + zeros // BLOCK * BLOCK
            offset += CHUNK
        return self._size

    def _next_header(self, offset: int) -> int | None:
        """Return the offset of the first valid header from ``offset``; None if there is none."""
        while offset < self._size:
            offset = self._past_hole(offset)
            chunk = self._block(offset, CHUNK)
            at = chunk.find(MAGIC)
            while at >= 0:
                start = at - MAGIC_AT
                if start >= 0 and start % BLOCK == 0 and _is_header(chunk[start : start + BLOCK]):
                    return offset + start
                at = chunk.find(MAGIC, at + 1)
            offset += CHUNK
        return None

    def _past_hole(self, offset: int) -> int:
        """Return the offset of the next written block from ``offset``: holes of sparse files are not read."""
        try:
            return os.lseek(self._file.fileno(), offset, os.SEEK_DATA) // BLOCK * BLOCK
        except OSError as error:
            return self._size if error.errno == errno.ENXIO else offset  # no more data; or not supported
        except AttributeError:
            return offset


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except BAD_HEADER:
        return False
    return True
