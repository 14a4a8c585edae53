"""Where images come from: one small protocol, and one class for each kind of place."""

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastmim.data.tables import is_saved, open_hub, open_parquet, open_saved
from fastmim.errors import UsageError

IMAGE_SUFFIXES = frozenset({".npy"}) | frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)


class ImageSource(Protocol):
    """Images by number; picklable, and safe to read from several processes at once."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person calls the image: its path within the source, or its row."""
        ...

    def read(self, index: int) -> bytes | NDArray[Any]:
        """The encoded file, or an array (H, W, C). Raises OSError where it cannot be read."""
        ...


class NameList:
    """Many names in two arrays: a million paths cost no Python object each and are shared by workers."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])])


class FileImages:
    """Image files below a folder, in sorted order; or a given list of files."""

    def __init__(self, root: str, names: Iterable[str]) -> None:
        self._root = root
        self._names = NameList(names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

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
                if member.isfile() and _is_image_name(member.name):
                    names.append(member.name)
                    places.append((member.offset_data, member.size))
        self._names = NameList(names)
        self._places = np.array(places, dtype=np.int64).reshape(-1, 2)
        self._opened: tuple[int, int] | None = None  # (process, file descriptor)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

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


def fingerprint(source: ImageSource) -> str:
    """A short digest of number and names: whether a resumed run still sees the same data."""
    digest = hashlib.sha256(str(len(source)).encode())
    for index in range(len(source)):
        digest.update(os.fsencode(source.name(index)) + b"\0")
    return digest.hexdigest()[:16]


def open_images(spec: str) -> ImageSource:
    """Open what a person calls their data.

    Args:
        spec: a folder (nested or not), a .tar of images, a .parquet file or a folder of them, a dataset
            saved by Hugging Face's ``save_to_disk``, ``hf:NAME[:SPLIT]``, ``demo:photos`` or
            ``demo:digits``.

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
    if is_saved(path):
        return open_saved(path)
    others: Counter[str] = Counter()
    names = sorted(_walk(path, others))
    if names:
        return FileImages(str(path), names)
    tables = sorted(str(file) for file in path.rglob("*.parquet"))
    if tables:
        return open_parquet(tables, str(path))
    found = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(4))
    raise UsageError(f"data: {path} holds no images (found: {found or 'nothing'}); {_suffixes()} are read")


def _walk(root: Path, others: Counter[str]) -> Iterator[str]:
    """Paths of image files below ``root``, relative to it; hidden ones are left out, links followed."""
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if _is_image_name(name):
                yield os.path.relpath(os.path.join(folder, name), root)
            elif not name.startswith("."):
                others[os.path.splitext(name)[1].lower()] += 1


def _is_image_name(name: str) -> bool:
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))
