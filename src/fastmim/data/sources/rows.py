"""Memory-mapped rows of a pack's Arrow files, checked for their format and content."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastmim.data.decode.pixels import first_line

NOT_WHOLE = "its checksum differs from that of the packed image"
BATCH_ROWS = 256  # of each record batch, so that a row is located without searching


@dataclass(frozen=True, slots=True)
class _Values:
    """A column of binary values or strings of a record batch, as views of the file."""

    ends: NDArray[np.int32]  # offsets into ``data``, one more than there are values
    data: NDArray[np.uint8]

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return self.data[self.ends[row] : self.ends[row + 1]]


class Rows(NamedTuple):
    """The columns of a record batch."""

    images: _Values
    paths: _Values
    shapes: NDArray[np.int32] | None  # (rows, 3) of raw pixels
    labels: NDArray[np.int64] | None
    checksums: NDArray[np.uint32]

    def path(self, row: int) -> str:
        return self.paths[row].tobytes().decode()

    def is_whole(self, row: int) -> bool:
        """Return whether a row matches its checksum."""
        shape = (None, None, None) if self.shapes is None else self.shapes[row].tolist()
        label = None if self.labels is None else int(self.labels[row])
        return checksum(self.images[row], shape, self.path(row), label) == int(self.checksums[row])


def checksum(payload: Any, shape: Sequence[int | None], path: str, label: int | None) -> int:
    """Return the checksum of a row: of the image as bytes, the shape, the path and the label."""
    return zlib.crc32(repr([*shape, path, label]).encode(), zlib.crc32(payload))


def open_table(file: str) -> Any:
    """Open a file of a pack as a memory-mapped pyarrow table. Raises OSError or pyarrow.ArrowInvalid."""
    with pa.memory_map(file) as mapped, pa.ipc.open_stream(mapped) as stream:
        return stream.read_all()


def record_batches(file: str, raw: bool, count: int) -> list[Rows]:
    """Return the record batches of a file of ``count`` rows. Raises OSError if the file is damaged."""
    try:
        table = open_table(file)
        batches = table.to_batches()
        for batch in batches:
            batch.validate(full=True)
        sizes = [batch.num_rows for batch in batches]
        if table.num_rows != count or any(size != BATCH_ROWS for size in sizes[:-1]):
            raise ValueError(f"it has {table.num_rows} rows in {len(sizes)} batches, not {count}")
        return [_rows(batch, raw) for batch in batches]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise OSError(f"{file} is damaged: {first_line(error)}") from error


def _rows(batch: Any, raw: bool) -> Rows:
    """Convert a record batch. Raises KeyError or TypeError if its columns are not those of a pack."""
    images = batch.column("pixels" if raw else "image")
    if not raw:
        if not pa.types.is_struct(images.type):
            raise TypeError(f"the images are of {images.type}, not a file and its path")
        images = images.field("bytes")
    shapes = None
    if raw:
        sides = [_numbers(batch.column(name), pa.int32()) for name in ("height", "width", "channels")]
        shapes = np.stack(sides, axis=1)
    labels = _numbers(batch.column("label"), pa.int64()) if "label" in batch.schema.names else None
    return Rows(
        _values(images, pa.binary()),
        _values(batch.column("path"), pa.string()),
        shapes,
        labels,
        _numbers(batch.column("crc32"), pa.uint32()),
    )


def _numbers(array: Any, form: Any) -> NDArray[Any]:
    _check_form(array, form)
    numbers: NDArray[Any] = array.to_numpy()
    return numbers


def _values(array: Any, form: Any) -> _Values:
    _check_form(array, form)
    _, ends, data = array.buffers()
    if data is None:
        data = b""
    offsets: NDArray[np.int32] = np.frombuffer(ends, np.int32)[array.offset : array.offset + len(array) + 1]
    return _Values(offsets, np.frombuffer(data, np.uint8))


def _check_form(array: Any, form: Any) -> None:
    if array.type != form or array.null_count:
        raise TypeError(f"a column is of {array.type} with {array.null_count} values missing, not of {form}")
