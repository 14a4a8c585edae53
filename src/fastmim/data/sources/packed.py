"""Packed images: the output of `pack`, read at random from memory-mapped Arrow files."""

import bisect
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fastmim.data.sources.rows import BATCH_ROWS, NOT_WHOLE, Rows, record_batches
from fastmim.errors import UsageError
from fastmim.system.documents import BareName, Count, Truth, Whole, checked, read_json, shown
from fastmim.system.files import replacing

MANIFEST = "fastmim-pack.json"
VERSION = 1


@dataclass(frozen=True)
class PackSettings:
    """Settings and properties of the source that determine the bytes of a pack."""

    short_side: Annotated[Whole, Field(ge=1)]
    encoding: Literal["jpeg", "raw"]
    quality: Annotated[Whole, Field(ge=1, le=100)] | None
    """JPEG quality; None for raw pixels."""
    format: Literal["arrow", "parquet"]
    in_chans: Annotated[Whole, Field(ge=1)]
    images: Count
    """Number of images in the source."""
    digest: str
    """Digest of the source's names, see `base.fingerprint`."""
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class Skipped:
    """An image that could not be packed."""

    index: Count
    image: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """One file of a pack at the time of writing."""

    file: BareName
    rows: Count
    bytes: Count
    sha256: str
    source_bytes: Count
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Description of a pack: its source, settings and files."""

    data: str
    settings: PackSettings
    complete: Truth = False
    shards: tuple[Shard, ...] = ()
    version: Whole = field(default=VERSION)

    def __repr__(self) -> str:
        rows, size = (sum(getattr(shard, name) for shard in self.shards) for name in ("rows", "bytes"))
        return (
            f"Manifest(data={self.data!r}, images={rows} of {self.settings.images}, bytes={size}, "
            f"files={len(self.shards)}, complete={self.complete})"
        )

    def write(self, folder: Path) -> None:
        """Write the manifest to its folder. Raises OSError."""
        write_json(folder / MANIFEST, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a folder. Raises UsageError if it is missing or damaged."""
        path = folder / MANIFEST
        try:
            values = read_json(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        version = values.get("version") if isinstance(values, dict) else None
        if version is not None and version != VERSION:
            raise UsageError(f"{path}: version {shown(version)} is not {VERSION}, which this fastmim reads")
        manifest = checked(cls, values, str(path))
        for shard in manifest.shards:
            if shard.rows > shard.bytes:  # an image has at least one byte
                raise UsageError(f"{path}: {shard.file} cannot have {shard.rows} rows in {shard.bytes} bytes")
        return manifest


def read_shard(path: Path) -> Shard:
    """Read the note of a file. Raises OSError, or UsageError if the content is not a note."""
    return checked(Shard, read_json(path), str(path))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically. Raises OSError."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")


def is_packed(path: Path) -> bool:
    """Return whether `pack` wrote this folder, or started to."""
    return (path / MANIFEST).is_file()


class PackedImages:
    """Images of a complete pack of Arrow files: encoded JPEGs, or arrays that are views of the files.

    A pickle holds a path and a few numbers per file; files are mapped when they are first read. Each row is
    compared with its checksum when it is read.

    Raises:
        UsageError: a file is missing or cut off, or the pack is incomplete.
    """

    def __init__(self, folder: Path) -> None:
        manifest = Manifest.read(folder)
        if not manifest.complete:
            raise UsageError(f"data: {folder} is incomplete; run the same `fastmim pack` again to resume it")
        check_files(folder, manifest)
        self.classes = manifest.settings.classes
        self._raw = manifest.settings.encoding == "raw"
        self._files = [str(folder / shard.file) for shard in manifest.shards]
        self._starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)]).tolist()
        self._opened: dict[int, list[Rows]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        try:
            rows, row = self._find(index)
        except OSError:  # reported when the image is read
            return f"row {index}"
        return rows.path(row)

    def joined_names(self) -> memoryview:
        parts = []
        for rows in self._all_rows():
            text, ends = rows.paths.data, rows.paths.ends
            parts.append(np.insert(text[ends[0] : ends[-1]], ends[1:] - ends[0], 0).tobytes())
        return memoryview(b"".join(parts))

    def labels(self, where: str) -> list[str]:
        """Return the class name of each row. Raises UsageError if there are no classes."""
        if self.classes is None:
            raise UsageError(f"data: {where} was packed from images without classes")
        names: list[str] = []
        for rows in self._all_rows():
            numbers = [] if rows.labels is None else rows.labels.tolist()
            if len(numbers) != len(rows.checksums) or not all(0 <= n < len(self.classes) for n in numbers):
                raise UsageError(f"data: {where} has rows without one of its {len(self.classes)} classes")
            names += [self.classes[number] for number in numbers]
        return names

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        rows, row = self._find(index)
        if not rows.is_whole(row):
            raise OSError(NOT_WHOLE)
        if rows.shapes is None:
            return rows.images[row].tobytes()
        height, width, channels = rows.shapes[row].tolist()
        if height * width * channels != len(rows.images[row]) or min(height, width, channels) < 1:
            raise OSError(f"its pixels are not {height} x {width} x {channels}")
        return rows.images[row].reshape(height, width, channels)

    def _find(self, index: int) -> tuple[Rows, int]:
        if not 0 <= index < self._starts[-1]:
            raise IndexError(f"image {index} of {self._starts[-1]}")
        shard = bisect.bisect_right(self._starts, index) - 1
        batch, row = divmod(index - self._starts[shard], BATCH_ROWS)
        return self._shard(shard)[batch], row

    def _all_rows(self) -> Iterator[Rows]:
        """Yield every record batch. Raises UsageError if a file is damaged."""
        for shard in range(len(self._files)):
            try:
                yield from self._shard(shard)
            except OSError as error:
                raise UsageError(f"data: {error}; pack the images again") from error

    def _shard(self, number: int) -> list[Rows]:
        """Return the record batches of a file. Raises OSError if the file is damaged."""
        if number not in self._opened:
            count = self._starts[number + 1] - self._starts[number]
            self._opened[number] = record_batches(self._files[number], self._raw, count)
        return self._opened[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise UsageError if a file of a pack is missing or cut off."""
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UsageError(f"data: {path} is missing or damaged; pack the images again")
