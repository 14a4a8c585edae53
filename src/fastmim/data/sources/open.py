"""Open image data of any supported kind as an image source."""

import os
import tarfile
from pathlib import Path

from fastmim.data.sources.base import FileImages, ImageSource, notes_of
from fastmim.data.sources.columns import Columns
from fastmim.data.sources.files import find_path
from fastmim.data.sources.index import IMAGE_SUFFIXES, left_out, list_images, list_tables
from fastmim.data.sources.packed import Manifest, PackedImages, is_packed
from fastmim.data.sources.tables import is_saved, open_hub, open_packed, open_parquet, open_saved
from fastmim.data.sources.tars import TarImages as TarImages
from fastmim.errors import UsageError

ARCHIVES = frozenset({".zip", ".7z", ".rar", ".tgz", ".gz", ".bz2", ".xz", ".zst"})


def open_images(
    spec: str, columns: Columns | None = None, without: str | os.PathLike[str] | None = None
) -> ImageSource:
    """Open the image source that ``spec`` names.

    Args:
        spec: a folder (nested or not), a pack of `fastmim pack`, a .tar of images, a .parquet file or a
            folder of these, a dataset saved by Hugging Face's ``save_to_disk``, ``hf:NAME[:SPLIT]``,
            ``demo:photos`` or ``demo:digits``.
        columns: the table columns of images and classes. Default: found by name and type.
        without: a folder to exclude, even if it lies within the data: the one that is written to.

    Raises:
        UsageError: the data does not exist, holds no images, or is of a kind that cannot be read.
    """
    columns = columns or Columns()
    if spec.startswith("demo:"):
        from fastmim.data.sources.demo import open_demo

        return open_demo(spec.removeprefix("demo:"))
    if spec.startswith("hf:"):
        return open_hub(spec, columns)
    path = find_path(spec)
    outside = Path(without).expanduser() if without else None
    source = _open_folder(path, columns, outside) if path.is_dir() else _open_file(path, columns)
    if not len(source):
        raise UsageError(f"data: {spec} holds no images{_said(notes_of(source))}")
    return source


def _open_file(path: Path, columns: Columns) -> ImageSource:
    if path.suffix == ".parquet":
        return open_parquet([str(path)], str(path), columns)
    try:
        return TarImages(str(path))
    except tarfile.ReadError as error:
        if _is_tar(path):
            raise UsageError(
                f"data: {path} is a compressed tar; images are read in random order, so unpack it first "
                "(tar -xf) and give the folder"
            ) from error
        way = (
            "unpack it and give the folder" if path.suffix.lower() in ARCHIVES else "give the folder it is in"
        )
        raise UsageError(f"data: {path} is a file, but neither a tar nor parquet; {way}") from error
    except OSError as error:
        raise UsageError(f"data: {path} cannot be read: {error.strerror or error}") from error


def _is_tar(path: Path) -> bool:
    """Return whether the standard library recognises a regular file as a tar, possibly a compressed one."""
    try:
        return tarfile.is_tarfile(path)
    except (EOFError, OSError, ValueError, MemoryError):
        return False


def _open_folder(path: Path, columns: Columns, without: Path | None) -> ImageSource:
    if is_packed(path):
        packed = Manifest.read(path)
        if packed.complete and packed.settings.format == "parquet":
            return open_packed(path, packed)
        return PackedImages(path)
    if is_saved(path):
        return open_saved(path, columns)
    names, others = list_images(path, without)
    notes = tuple(left_out(others))
    if len(names):
        return FileImages(str(path), names, notes)
    tables = list_tables(path)
    if tables:
        return open_parquet([str(file) for file in tables], str(path), columns)
    found = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(4))
    way = f"{' '.join(sorted(IMAGE_SUFFIXES))} are read"
    if others[".tar"]:
        way = "give one of the tars by its name, or unpack them all"
    elif not ARCHIVES.isdisjoint(others):
        way = "unpack the archives"
    raise UsageError(f"data: {path} holds no images (found: {found or 'nothing'}); {way}")


def _said(notes: tuple[str, ...]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""
