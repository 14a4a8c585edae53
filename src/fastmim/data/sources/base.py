"""Define an image source, and the simplest sources: files, arrays, and a subset of another source."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastmim.data.sources.files import read_regular
from fastmim.data.sources.names import Named, NameList
from fastmim.data.sources.tars import TarImages as TarImages


class ImageSource(Protocol):
    """Images by index; picklable, and safe to read from several processes at once."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of the image for messages: its path within the source, or its row."""
        ...

    def read(self, index: int) -> bytes | NDArray[Any]:
        """Return the encoded file, or an array (H, W, C). Raises OSError if the image cannot be read."""
        ...


@runtime_checkable
class JoinsNames(Protocol):
    """A source that returns all its names at once."""

    def joined_names(self) -> memoryview:
        """Return the bytes of all names, each followed by a zero byte."""
        ...


@runtime_checkable
class HasLabels(Protocol):
    """A source that stores the class of each image."""

    def labels(self, where: str) -> list[str]:
        """Return the class of each image. Raises UsageError, which names ``where``, if there are none."""
        ...


@runtime_checkable
class HasNotes(Protocol):
    """A source with notes for the user, such as the number of files that were left out."""

    notes: tuple[str, ...]


def notes_of(source: object) -> tuple[str, ...]:
    """Return the sentences about a source that every command shows."""
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
    """Images in memory, (N, H, W, C); see `image.crop_and_resize` for the scale of their values."""

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


class MixedImages:
    """A list of files and arrays (H, W) or (H, W, C)."""

    def __init__(self, images: Sequence[str | os.PathLike[str] | NDArray[Any]]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        image = self._images[index]
        return f"image {index}" if isinstance(image, np.ndarray) else os.fspath(image)

    def read(self, index: int) -> bytes | NDArray[Any]:
        image = self._images[index]
        if isinstance(image, np.ndarray):
            return image[..., None] if image.ndim == 2 else image
        return read_regular(os.fspath(image))


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
    """Return a short digest of the number and names of images, by which a resumed run recognises its data."""
    digest = hashlib.sha256(str(len(source)).encode())
    if isinstance(source, JoinsNames):
        digest.update(source.joined_names())
    else:
        for index in range(len(source)):
            digest.update(os.fsencode(source.name(index)) + b"\0")
    return digest.hexdigest()[:16]


def digest_of(parts: Iterable[tuple[ImageSource, NDArray[np.int64]]], names: Iterable[str]) -> str:
    """Return a short digest of the chosen images of several sources, and of further names."""
    digest = hashlib.sha256()
    for source, indices in parts:
        digest.update(fingerprint(source).encode())
        digest.update(np.ascontiguousarray(indices).tobytes())
    for name in names:
        digest.update(name.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()[:16]
