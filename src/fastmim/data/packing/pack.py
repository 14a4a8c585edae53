"""Write a resized copy of a data set, in parallel and resumably, as Arrow or parquet shards.

Each file of the pack is written under a temporary name and moved into place, then its note is written to
`shards/`. A killed pack resumes with the files that have no note. The complete manifest is written last.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastmim.data.labelled import class_names, in_order
from fastmim.data.packing.shards import Damage, Part, features_of, verify_shard, write_shard
from fastmim.data.settings import MAX_PIXELS
from fastmim.data.sources.base import ImageSource, fingerprint, notes_of
from fastmim.data.sources.columns import Columns
from fastmim.data.sources.open import open_images
from fastmim.data.sources.packed import (
    MANIFEST,
    Manifest,
    PackSettings,
    Shard,
    is_packed,
    read_shard,
    write_json,
)
from fastmim.errors import RunError, UsageError, why
from fastmim.system.processes import in_processes
from fastmim.system.progress import Progress, no_progress

SHARD_IMAGES = 1024
QUALITY = 85  # of JPEGs at 4:2:0: 34 dB to the pixels, 9 kB at a short side of 144; 90 is 10 % slower
NOTES = "shards"
SKIPPED = "skipped.jsonl"


def pack(  # noqa: PLR0913 - public
    data: str,
    out: str | Path,
    short_side: int = 192,
    encoding: Literal["jpeg", "raw"] = "jpeg",
    quality: int | None = None,
    format: Literal["arrow", "parquet"] = "arrow",
    in_chans: int = 3,
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress = no_progress,
    max_pixels: int = MAX_PIXELS,
    columns: Columns | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write a resized copy of the images of ``data`` to the folder ``out``, or resume an earlier call.

    Only one call at a time may write to a folder.

    Args:
        data: the images, see `open_images`.
        short_side: largest length of the shorter side in pixels; smaller images are not enlarged.
        encoding: JPEG, or raw pixels, which take 9 times the space and a quarter of the time to read.
        quality: of JPEGs, 1 to 100, default 85. Upright JPEGs that are already small are copied unchanged.
        format: Arrow, which `datasets.load_from_disk` opens, or parquet (JPEG only).
        in_chans: 3 (RGB) or 1 (grey), 8 bits per channel.
        workers: number of processes; 0 or 1: this process only. The result does not depend on it.
        overwrite: replace another pack in ``out``.
        progress: called from time to time with (images done, images in total).
        max_pixels: limit for an image; larger images are skipped.
        columns: the table columns of images and classes. Default: found by name and type.
        say: called with each note on the data, such as files that were left out.

    Raises:
        UsageError: settings contradict each other, or differ from those of the existing pack.
        RunError: no image can be read, or nothing can be written.
    """
    # Open the source and its classes.
    folder = Path(out)
    source = open_images(data, columns, folder)
    names = class_names(data, source)
    for note in notes_of(source):
        say(f"data: {note}")
    classes = in_order(names) if names is not None and len(set(names)) > 1 else None
    settings = _settings(source, short_side, encoding, quality, format, in_chans, classes)
    with _disk_errors(folder):
        # Prepare the folder; a complete pack needs no more work.
        _prepare(folder, Manifest(data, settings), overwrite)
        manifest = Manifest.read(folder)
        if manifest.complete:
            return manifest
        # Find the files that an earlier call has not written.
        parts = list(_parts(settings, names))
        done = {part.file: shard for part in parts if (shard := _noted(folder, part.file)) is not None}
        missing = [part for part in parts if part.file not in done]
        finished = sum(part.count for part in parts if part.file in done)
        progress(finished, settings.images)
        # Write the missing files, each followed by its note.
        schema = features_of(settings).arrow_schema
        counts = {part.file: part.count for part in missing}
        shared = (source, settings, schema, folder, max_pixels)
        for _, shard in in_processes(write_shard, shared, missing, min(workers, len(missing))):
            write_json(folder / NOTES / f"{shard.file}.json", asdict(shard))
            done[shard.file] = shard
            finished += counts[shard.file]
            progress(finished, settings.images)
        return _finish(folder, replace(manifest, shards=tuple(done[part.file] for part in parts)))


def verify(out: str | Path, workers: int = 0, progress: Progress = no_progress) -> list[Damage]:
    """Read and decode every row of a complete pack; return the rows and files that differ from those written.

    Raises UsageError if ``out`` is not a complete pack.
    """
    folder = Path(out)
    if not is_packed(folder):
        raise UsageError(f"out = {folder} was not written by `fastmim pack`")
    manifest = Manifest.read(folder)
    if not manifest.complete:
        raise UsageError(f"out = {folder} is incomplete: run the same `fastmim pack` again first")
    found: list[Damage] = []
    images, total = 0, sum(shard.rows for shard in manifest.shards)
    shared, workers = (folder, manifest.settings), min(workers, len(manifest.shards))
    for number, damages in in_processes(verify_shard, shared, manifest.shards, workers):
        found += damages
        images += manifest.shards[number].rows
        progress(images, total)
    return sorted(found, key=lambda damage: (damage.file, damage.row))


def _settings(
    source: ImageSource,
    short_side: int,
    encoding: Literal["jpeg", "raw"],
    quality: int | None,
    format: Literal["arrow", "parquet"],
    in_chans: int,
    classes: tuple[str, ...] | None,
) -> PackSettings:
    if short_side < 1:
        raise UsageError(f"short_side = {short_side} must be 1 or more pixels")
    if in_chans not in (1, 3):
        raise UsageError(f"in_chans = {in_chans}: images of 3 channels (RGB) or 1 (grey) can be packed")
    if encoding == "raw" and quality is not None:
        raise UsageError("quality goes with encoding = jpeg only: raw pixels are kept as they are")
    if encoding == "raw" and format == "parquet":
        raise UsageError("format = parquet needs encoding = jpeg: raw pixels are mapped from Arrow files")
    quality = (quality if quality is not None else QUALITY) if encoding == "jpeg" else None
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"quality = {quality} must be in 1..100")
    return PackSettings(
        short_side, encoding, quality, format, in_chans, len(source), fingerprint(source), classes
    )


def _prepare(folder: Path, wanted: Manifest, overwrite: bool) -> None:
    """Prepare the folder to hold a part of this pack. Raises UsageError if it holds anything else."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"out = {folder} is a file")
    if is_packed(folder):
        there = Manifest.read(folder) if not overwrite else None
        if there is not None and there.settings == wanted.settings:
            for unfinished in (*folder.glob("*.part"), *folder.glob(f"{NOTES}/*.part")):
                unfinished.unlink()
            return
        if there is not None:
            raise UsageError(
                f"out = {folder} holds another pack: {_difference(there.settings, wanted.settings)}; "
                "give another folder, or --overwrite"
            )
        _clear(folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"out = {folder} holds other files: give a folder that is new or empty")
    (folder / NOTES).mkdir(parents=True, exist_ok=True)
    wanted.write(folder)


def _difference(there: PackSettings, wanted: PackSettings) -> str:
    before, now = asdict(there), asdict(wanted)
    name = next(name for name in before if before[name] != now[name])
    if name == "classes":
        return "its images have other classes"
    if name == "digest":
        return "it was made from images with other names"
    return f"{name} = {before[name]}, not {now[name]}"


def _clear(folder: Path) -> None:
    """Remove the files of a pack, the manifest last."""
    shutil.rmtree(folder / NOTES, ignore_errors=True)
    for pattern in ("data-*.arrow*", "data-*.parquet*", "state.json", "dataset_info.json", SKIPPED):
        for path in folder.glob(pattern):
            path.unlink()
    (folder / MANIFEST).unlink()


def _parts(settings: PackSettings, names: list[str] | None) -> Iterator[Part]:
    labels = None
    if names is not None and settings.classes is not None:
        numbers = {name: number for number, name in enumerate(settings.classes)}
        labels = np.array([numbers[name] for name in names], np.int64)
    total = -(-settings.images // SHARD_IMAGES)
    for number in range(total):
        first = number * SHARD_IMAGES
        chosen = slice(first, min(first + SHARD_IMAGES, settings.images))
        file = f"data-{number:05d}-of-{total:05d}.{settings.format}"
        yield Part(file, first, labels[chosen] if labels is not None else None, chosen.stop - first)


def _noted(folder: Path, file: str) -> Shard | None:
    """Return an earlier call's note of a file if the file still exists in its full size; else None."""
    try:
        shard = read_shard(folder / NOTES / f"{file}.json")
        same = shard.file == file and (folder / file).stat().st_size == shard.bytes
        return shard if same else None
    except (OSError, UsageError):
        return None


def _finish(folder: Path, manifest: Manifest) -> Manifest:
    """Write the metadata that makes the files a data set, the complete manifest last."""
    skipped = [item for shard in manifest.shards for item in shard.skipped]
    rows = sum(shard.rows for shard in manifest.shards)
    if not rows:
        first = skipped[0]
        raise RunError(
            f"none of the {len(skipped)} images can be read; the first is {first.image}: {first.reason}"
        )
    for shard in manifest.shards:
        if not shard.rows:
            (folder / shard.file).unlink(missing_ok=True)
    shards = tuple(replace(shard, skipped=()) for shard in manifest.shards if shard.rows)
    (folder / SKIPPED).write_text("".join(json.dumps(asdict(item)) + "\n" for item in skipped))
    if manifest.settings.format == "arrow":
        import datasets

        datasets.DatasetInfo(features=features_of(manifest.settings)).write_to_directory(str(folder))
        write_json(folder / "state.json", _state(shards, manifest.settings))
    finished = replace(manifest, shards=shards, complete=True)
    finished.write(folder)
    shutil.rmtree(folder / NOTES, ignore_errors=True)
    return finished


def _state(shards: tuple[Shard, ...], settings: PackSettings) -> dict[str, Any]:
    """Return the state that `Dataset.save_to_disk` would write; calling it would copy every image."""
    return {
        "_data_files": [{"filename": shard.file} for shard in shards],
        "_fingerprint": settings.digest,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {folder}: {why(error)}; the same command resumes it") from error
