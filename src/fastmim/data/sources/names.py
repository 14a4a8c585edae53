"""Lists of many names in two arrays, which may be mapped from a file that all processes share."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmim.errors import RunError
from fastmim.system.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = b"fastmim names 1\n"
HEAD = len(MAGIC) + 16  # magic, number of names and number of bytes; the ends and then the names follow


def as_text(name: str) -> str:
    r"""Convert a name to text that can be written anywhere: bytes that are not UTF-8 become ``\xe9``."""
    return os.fsencode(name).decode(errors="backslashreplace")


class NameList:
    """List of names without a Python object per name, for millions of paths.

    A list from `load` is mapped from its file: processes share the pages, and a pickle holds only the path
    and the number of names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) + b"\0" for name in names]
        self._path: str | None = None
        self._bytes: NDArray[np.uint8] = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends: NDArray[np.int64] = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index]) - 1].tobytes())

    def joined(self) -> memoryview:
        """Return all names in the file system's encoding, each followed by a zero byte."""
        return self._bytes.data

    def save(self, path: Path) -> None:
        """Write a file for `load`, atomically. Raises OSError."""
        with replacing(path) as part, open(part, "wb") as file:
            file.write(MAGIC)
            file.write(np.array([len(self._ends), len(self._bytes)], np.int64).tobytes())
            file.write(self._ends.data)
            file.write(self._bytes.data)

    @classmethod
    def load(cls, path: Path) -> "NameList":
        """Map a file that `save` wrote. Raises OSError, or ValueError if it is not such a file."""
        names = cls.__new__(cls)
        names._map(str(path))
        return names

    def _map(self, path: str) -> None:
        content = np.memmap(path, np.uint8, "r")
        if content[: len(MAGIC)].tobytes() != MAGIC:
            raise ValueError(f"{path} is not a list of names")
        count, length = content[len(MAGIC) : HEAD].view(np.int64).tolist()
        start = HEAD + 8 * count
        if len(content) != start + length:
            raise ValueError(f"{path} is damaged")
        self._path = path
        self._ends = content[HEAD:start].view(np.int64)
        self._bytes = content[start:]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self._path is None else {"_path": self._path, "count": len(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        path = state["_path"]
        if path is None:
            self.__dict__.update(state)
            return
        try:
            self._map(path)
        except (OSError, ValueError) as error:
            raise RunError(f"the index of the images is missing: {error}; start again") from error
        if len(self) != state["count"]:
            raise RunError(f"the index of the images, {path}, has changed; start again")


class Named:
    """Base class of sources whose images have the names in ``self._names``."""

    _names: NameList

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def joined_names(self) -> memoryview:
        return self._names.joined()
