"""Where images come from: one small protocol, and one class for each kind of place."""

import hashlib
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastmim.data.index import IMAGE_SUFFIXES, is_image_name, list_images
from fastmim.data.names import NameList
from fastmim.data.packed import Manifest, PackedImages, is_packed
from fastmim.data.tables import is_saved, open_hub, open_packed, open_parquet, open_saved
from fastmim.errors import UsageError


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


class FileImages:
    """Image files below a folder, in sorted order; or a given list of files."""

    def __init__(self, root: str, names: Iterable[str] | NameList) -> None:
        self._root = root
        self._names = names if isinstance(names, NameList) else NameList(names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def joined_names(self) -> memoryview:
        return self._names.joined()

    def read(self, index: int) -> bytes:
        with open(os.path.join(self._root, self._names[index]), "rb") as file:
            return file.read()


class TarImages:
    """The image files of an uncompressed tar, read at random where they lie."""

    def __init__(self, path: str) -> None:
        self._path = path
        names, places = [], []
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and is_image_name(member.name):
                    names.append(member.name)
                    places.append((member.offset_data, member.size))
        self._names = NameList(names)
        self._places = np.array(places, dtype=np.int64).reshape(-1, 2)
        self._opened: tuple[int, int] | None = None  # (process, file descriptor)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def joined_names(self) -> memoryview:
        return self._names.joined()

    def read(self, index: int) -> bytes:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), os.open(self._path, os.O_RDONLY))
        offset, size = (int(number) for number in self._places[index])
        return os.pread(self._opened[1], size, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


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


def open_images(spec: str) -> ImageSource:
    """Open what a person calls their data.

    Args:
        spec: a folder (nested or not), what `fastmim pack` wrote, a .tar of images, a .parquet file or a
            folder of them, a dataset saved by Hugging Face's ``save_to_disk``, ``hf:NAME[:SPLIT]``,
            ``demo:photos`` or ``demo:digits``.

    Raises:
        UsageError: it does not exist, holds no images, or is of no kind that can be read.
    """
    if spec.startswith("demo:"):
        from fastmim.data.demo import open_demo

        return open_demo(spec.removeprefix("demo:"))
    if spec.startswith("hf:"):
        return open_hub(spec)
    path = Path(spec).expanduser()
    if not path.exists():
        raise UsageError(
            f"data: {spec} does not exist; "
            "give a folder, a .tar, .parquet, hf:NAME, demo:photos or demo:digits"
        )
    source = _open_folder(path) if path.is_dir() else _open_file(path)
    if not len(source):
        raise UsageError(f"data: {spec} holds no images")
    return source


def _open_file(path: Path) -> ImageSource:
    if path.suffix == ".parquet":
        return open_parquet([str(path)], str(path))
    if not tarfile.is_tarfile(path):
        raise UsageError(f"data: {path} is a file, but neither a tar nor parquet; give the folder it is in")
    try:
        return TarImages(str(path))
    except tarfile.ReadError as error:
        raise UsageError(
            f"data: {path} is a compressed or damaged tar ({error}); images are read from it at random, "
            "so unpack it first (tar -xf) and give the folder"
        ) from error


def _open_folder(path: Path) -> ImageSource:
    if is_packed(path):
        packed = Manifest.read(path)
        if packed.complete and packed.settings.format == "parquet":
            return open_packed(path, packed)
        return PackedImages(path)
    if is_saved(path):
        return open_saved(path)
    names, others = list_images(path)
    if len(names):
        return FileImages(str(path), names)
    tables = sorted(str(file) for file in path.rglob("*.parquet"))
    if tables:
        return open_parquet(tables, str(path))
    found = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(4))
    raise UsageError(f"data: {path} holds no images (found: {found or 'nothing'}); {_suffixes()} are read")


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
