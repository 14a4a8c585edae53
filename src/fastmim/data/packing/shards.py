"""Encode, write and verify the images of one file of a pack."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from numpy.typing import NDArray

from fastmim.data.decode import jpeg
from fastmim.data.decode.image import decode, shrink
from fastmim.data.decode.pixels import Pixels, UnreadableImage, first_line
from fastmim.data.sources.base import ImageSource
from fastmim.data.sources.names import as_text
from fastmim.data.sources.packed import PackSettings, Shard, Skipped
from fastmim.data.sources.rows import BATCH_ROWS, checksum, open_table

JPEG_MOST = 65_500  # libjpeg's limit for a side, in pixels

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """Consecutive images of the source that go into one file."""

    file: str
    first: int
    labels: NDArray[np.int64] | None
    count: int


@dataclass(frozen=True)
class Damage:
    """A row that differs from the written one, or a damaged file (row -1)."""

    file: str
    row: int
    image: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}, row {self.row} ({self.image})" if self.row >= 0 else self.file
        return f"{place}: {self.reason}"


def features_of(settings: PackSettings) -> Any:
    """Return the columns of a pack as Hugging Face's ``datasets.Features``."""
    import datasets

    columns: dict[str, Any] = {"image": datasets.Image()}
    if settings.encoding == "raw":
        sides = {name: datasets.Value("int32") for name in ("height", "width", "channels")}
        columns = {"pixels": datasets.Value("binary"), **sides}
    columns["path"] = datasets.Value("string")
    if settings.classes is not None:
        columns["label"] = datasets.ClassLabel(names=list(settings.classes))
    return datasets.Features({**columns, "crc32": datasets.Value("uint32")})


def write_shard(
    source: ImageSource, settings: PackSettings, schema: Any, folder: Path, max_pixels: int, part: Part
) -> Shard:
    """Pack a part of the source into its file, which appears only when it is complete.

    Raises OSError if the file cannot be written.
    """
    target = folder / part.file
    unfinished = target.with_name(f"{part.file}.{os.getpid()}.part")
    skipped: list[Skipped] = []
    read = rows = 0
    try:
        with _open_writer(unfinished, schema, settings.format) as writer:
            pending: list[Row] = []
            for index in range(part.first, part.first + part.count):
                try:
                    data = source.read(index)
                    read += data.nbytes if isinstance(data, np.ndarray) else len(data)
                    row = _encode(data, settings, max_pixels)
                except (UnreadableImage, OSError) as error:
                    reason = getattr(error, "strerror", None) or first_line(error)
                    skipped.append(Skipped(index, source.name(index), reason))
                    continue
                pending.append(_label(row, settings, source.name(index), part, index))
                rows += 1
                if len(pending) == BATCH_ROWS:
                    writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=schema))
                    pending = []
            if pending:
                writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=schema))
        digest, size = _digest(unfinished), unfinished.stat().st_size
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return Shard(part.file, rows, size, digest, read, tuple(skipped))


def verify_shard(folder: Path, settings: PackSettings, shard: Shard) -> list[Damage]:
    """Read and decode every row of a file; return each difference from the written file."""
    path = folder / shard.file

    def of_file(reason: str) -> Damage:
        return Damage(shard.file, -1, "", reason)

    try:
        whole = _digest(path) == shard.sha256
        table = pq.read_table(path) if settings.format == "parquet" else open_table(str(path))
        if not whole:
            table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        return [of_file(getattr(error, "strerror", None) or first_line(error))]
    found = []
    for row, content in enumerate(_rows(table)):
        reason = _fault(content, settings)
        if reason:
            found.append(Damage(shard.file, row, str(content["path"]), reason))
    if table.num_rows != shard.rows:
        found.append(of_file(f"{table.num_rows} rows instead of {shard.rows}"))
    if not whole and not found:
        found.append(of_file("its digest differs from that of the file written; all rows are intact"))
    return found


def _rows(table: Any) -> Iterator[Row]:
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield from batch.to_pylist()


def _encode(data: bytes | NDArray[Any], settings: PackSettings, max_pixels: int) -> Row:
    """Return the columns that hold the image. Raises UnreadableImage."""
    pixels = shrink(data, settings.short_side, settings.in_chans, max_pixels)
    if settings.encoding == "raw":
        height, width, channels = pixels.shape
        return {"pixels": pixels.tobytes(), "height": height, "width": width, "channels": channels}
    if isinstance(data, bytes) and _is_kept(data, settings.short_side, max_pixels):
        return {"image": data}
    return {"image": _to_jpeg(pixels, settings.quality)}


def _is_kept(data: bytes, short_side: int, max_pixels: int) -> bool:
    """Return whether a file is a small upright JPEG, which would only lose quality by encoding it again."""
    header = jpeg.read_header(data, max_pixels) if data.startswith(jpeg.MAGIC) else None
    return header is not None and header.orientation == 1 and min(header.height, header.width) <= short_side


def _to_jpeg(pixels: Pixels, quality: int | None) -> bytes:
    height, width, chans = pixels.shape
    if max(height, width) > JPEG_MOST:
        raise UnreadableImage(
            f"{width}x{height} pixels after resizing; a JPEG has at most {JPEG_MOST} a side: "
            "give encoding = raw"
        )
    grey = chans == 1
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels),
        quality=quality,
        colorspace="GRAY" if grey else "RGB",
        colorsubsampling="Gray" if grey else "420",
    )
    return encoded


def _label(row: Row, settings: PackSettings, name: str, part: Part, index: int) -> Row:
    """Add the path (as text), class and checksum to a row."""
    path = as_text(name)
    row = {**row, "path": path}
    if part.labels is not None:
        row["label"] = int(part.labels[index - part.first])
    if settings.encoding == "jpeg":
        row["image"] = {"bytes": row["image"], "path": path}
    return {**row, "crc32": _checksum(row)}


def _checksum(row: Row) -> int:
    """Return the checksum of all other columns of the row."""
    image = row.get("image")
    payload = image["bytes"] if isinstance(image, dict) else row["pixels"]
    shape = [row.get(name) for name in ("height", "width", "channels")]
    return checksum(payload, shape, row["path"], row.get("label"))


def _fault(row: Row, settings: PackSettings) -> str:
    """Return the fault of a row; an empty string if the row is intact."""
    if _checksum(row) != row["crc32"]:
        return "its checksum differs from that written"
    if settings.encoding == "raw":
        expected = row["height"] * row["width"] * row["channels"]
        return "" if len(row["pixels"]) == expected else f"{len(row['pixels'])} bytes instead of {expected}"
    try:
        decode(row["image"]["bytes"], settings.in_chans)
    except UnreadableImage as error:
        return str(error)
    return ""


def _open_writer(path: Path, schema: Any, form: str) -> Any:
    if form == "parquet":
        return pq.ParquetWriter(path, schema, compression="none", use_dictionary=False)
    return pa.RecordBatchStreamWriter(str(path), schema)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
