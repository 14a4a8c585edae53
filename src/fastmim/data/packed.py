"""Packed images: what `pack` wrote, read at random from memory-mapped Arrow files."""

import bisect
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastmim.errors import UsageError

MANIFEST = "fastmim-pack.json"
VERSION = 1
BATCH_ROWS = 256  # of a record batch: where a row lies is then known without searching


@dataclass(frozen=True)
class PackSettings:
    """What decides the bytes of a pack."""

    short_side: int
    encoding: Literal["jpeg", "raw"]
    quality: int | None
    """Of JPEGs; None for raw pixels."""
    format: Literal["arrow", "parquet"]
    in_chans: int
    images: int
    """Of the source."""
    digest: str
    """Of the source's names, see `images.fingerprint`."""
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class Skipped:
    """An image that could not be packed."""

    index: int
    image: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """One file of a pack, as it was written."""

    file: str
    rows: int
    bytes: int
    sha256: str
    source_bytes: int
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a pack says of itself."""

    data: str
    settings: PackSettings
    complete: bool = False
    shards: tuple[Shard, ...] = ()
    version: int = field(default=VERSION)

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises UsageError where it is missing or damaged."""
        path = folder / MANIFEST
        try:
            entry = json.loads(path.read_text())
            if entry["version"] != VERSION:
                raise UsageError(
                    f"{path}: version {entry['version']} is not {VERSION}, which this fastmim reads"
                )
            classes = entry["settings"].pop("classes")
            settings = PackSettings(
                **entry["settings"], classes=tuple(classes) if classes is not None else None
            )
            shards = tuple(read_shard(shard) for shard in entry["shards"])
            return cls(entry["data"], settings, entry["complete"], shards)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{path} cannot be read: {error}") from error


def read_shard(entry: dict[str, Any]) -> Shard:
    """Raises TypeError where a field is missing."""
    return Shard(**{**entry, "skipped": tuple(Skipped(**skipped) for skipped in entry["skipped"])})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """All of it or none. Raises OSError."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_packed(path: Path) -> bool:
    """Whether `pack` wrote this folder, or began to."""
    return (path / MANIFEST).is_file()


@dataclass(frozen=True, slots=True)
class _Values:
    """A column of binary values or strings of a record batch, where it lies in the file."""

    ends: NDArray[np.int32]  # one more than there are values
    data: NDArray[np.uint8]

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return self.data[self.ends[row] : self.ends[row + 1]]


class _Rows(NamedTuple):
    """A record batch."""

    images: _Values
    paths: _Values
    shapes: NDArray[np.int32] | None  # (rows, 3) of raw pixels


class PackedImages:
    """The images of a complete pack of Arrow files: encoded JPEGs, or arrays that are views of the files.

    Pickled it is a path and a few numbers a file; files are mapped when they are first read.

    Raises:
        UsageError: a file is missing or cut off, or the pack was not packed to its end.
    """

    def __init__(self, folder: Path) -> None:
        manifest = Manifest.read(folder)
        if not manifest.complete:
            raise UsageError(
                f"data: {folder} is not packed to its end; run the same `fastmim pack` again, it goes on"
            )
        for shard in manifest.shards:
            path = folder / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise UsageError(f"data: {path} is missing or not as it was written; pack the images again")
        self.classes = manifest.settings.classes
        self._raw = manifest.settings.encoding == "raw"
        self._files = [str(folder / shard.file) for shard in manifest.shards]
        self._starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)]).tolist()
        self._opened: dict[int, list[_Rows]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        rows, row = self._find(index)
        return rows.paths[row].tobytes().decode()

    def joined_names(self) -> memoryview:
        parts = []
        for shard in range(len(self._files)):
            for rows in self._shard(shard):
                text, ends = rows.paths.data, rows.paths.ends
                parts.append(np.insert(text[ends[0] : ends[-1]], ends[1:] - ends[0], 0).tobytes())
        return memoryview(b"".join(parts))

    def labels(self, where: str) -> list[str]:
        """Each row's class by name. Raises UsageError where there are none."""
        if self.classes is None:
            raise UsageError(f"data: {where} was packed from images without classes")
        numbers = (open_table(file).column("label").to_numpy() for file in self._files)
        return [self.classes[number] for part in numbers for number in part.tolist()]

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        rows, row = self._find(index)
        if rows.shapes is None:
            return rows.images[row].tobytes()
        return rows.images[row].reshape(rows.shapes[row])

    def _find(self, index: int) -> tuple[_Rows, int]:
        if not 0 <= index < self._starts[-1]:
            raise IndexError(f"image {index} of {self._starts[-1]}")
        shard = bisect.bisect_right(self._starts, index) - 1
        batch, row = divmod(index - self._starts[shard], BATCH_ROWS)
        return self._shard(shard)[batch], row

    def _shard(self, number: int) -> list[_Rows]:
        if number not in self._opened:
            self._opened[number] = list(_batches(self._files[number], self._raw))
        return self._opened[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}


def open_table(file: str) -> Any:
    """A file of a pack as a pyarrow table that is mapped. Raises OSError or pyarrow.ArrowInvalid."""
    with pa.memory_map(file) as mapped, pa.ipc.open_stream(mapped) as stream:
        return stream.read_all()


def _batches(file: str, raw: bool) -> Iterator[_Rows]:
    try:
        table = open_table(file)
    except pa.ArrowInvalid as error:
        raise OSError(f"{file} is damaged: {error}") from error
    for batch in table.to_batches():
        images = batch.column("pixels") if raw else batch.column("image").field("bytes")
        shapes = None
        if raw:
            sides = [batch.column(name).to_numpy() for name in ("height", "width", "channels")]
            shapes = np.stack(sides, axis=1)
        yield _Rows(_values(images), _values(batch.column("path")), shapes)


def _values(array: Any) -> _Values:
    _, ends, data = array.buffers()
    if data is None:
        data = b""
    offsets: NDArray[np.int32] = np.frombuffer(ends, np.int32)[array.offset : array.offset + len(array) + 1]
    return _Values(offsets, np.frombuffer(data, np.uint8))
