"""Define an image source, and the simplest ones: files, arrays, a subset of another."""

import hashlib
import os
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastmim.data.sources.files import read_regular
from fastmim.data.sources.names import Named, NameList
from fastmim.data.sources.tars import TarImages as TarImages


class ImageSource(Protocol):
    """Images by number; picklable, and safe to read from several processes at once."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person calls the image: its path within the source, or its row."""
        ...

    def read(self, index: int) -> bytes | NDArray[Any]:
        """The encoded file, or an array (H, W, C). Raises OSError where it cannot be read."""
        ...


@runtime_checkable
class JoinsNames(Protocol):
    """A source that has all its names at hand."""

    def joined_names(self) -> memoryview:
        """The bytes of all names, a zero byte after each."""
        ...


@runtime_checkable
class HasNotes(Protocol):
    """A source that knows what was left out of it, or what else a person should be told of it."""

    notes: tuple[str, ...]


def notes_of(source: object) -> tuple[str, ...]:
    """Sentences about a source that every verb shows."""
    return source.notes if isinstance(source, HasNotes) else ()


class FileImages(Named):
    """Image files below a folder, in sorted order; or a given list of files."""

    def __init__(self, root: str, names: Iterable[str] | NameList, notes: tuple[str, ...] = ()) -> None:
        self.notes = notes
        self._root = root
        self._names = names if isinstance(names, NameList) else NameList(names)

    def read(self, index: int) -> bytes:
        return read_regular(os.path.join(self._root, self._names[index]))


class ArrayImages:
    """Images that are in memory already, (N, H, W, C); see `decode.crop_and_resize` for their scale."""

    def __init__(self, images: NDArray[Any], name: str) -> None:
        self._images = images
        self._name = name

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"{self._name} {index}"

    def read(self, index: int) -> NDArray[Any]:
        image: NDArray[Any] = self._images[index]
        return image


class Subset:
    """Some of the images of a source."""

    def __init__(self, source: ImageSource, indices: NDArray[np.int64]) -> None:
        self.notes = notes_of(source)
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def read(self, index: int) -> bytes | NDArray[Any]:
        return self._source.read(int(self._indices[index]))


def fingerprint(source: ImageSource) -> str:
    """A short digest of number and names: whether a resumed run still sees the same data."""
    digest = hashlib.sha256(str(len(source)).encode())
    if isinstance(source, JoinsNames):
        digest.update(source.joined_names())
    else:
        for index in range(len(source)):
            digest.update(os.fsencode(source.name(index)) + b"\0")
    return digest.hexdigest()[:16]
