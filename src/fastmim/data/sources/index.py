"""List the images below a folder; a list of many images is cached for the next time.

A cached list is valid as long as each folder keeps its modification time and inode. This check takes one look
per folder instead of one per file, and detects every file that was added, removed or renamed.
"""

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastmim.data.sources.names import NameList
from fastmim.system.cache import cache_folder
from fastmim.system.documents import BareName, Count, Whole, checked, read_json

IMAGE_SUFFIXES = frozenset({".npy"}) | frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".jp2", ".j2k", ".bmp", ".dib", ".tif"}
    | {".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"}
)
# Folders that operating systems and archivers add; their files are copies, thumbnails or remains.
SYSTEM_FOLDERS = frozenset(
    ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")
)
# Marks of a folder that fastmim wrote, which is not data: the folder contains all names of a line.
RUN_MARKS = (
    {"config.yaml", "metrics.jsonl"},
    {"config.yaml", "last.ckpt"},
    {"payoff.json"},
    {"sweep.json"},
    {"fastmim-pack.json"},
)
RUN_PICTURES = frozenset({"samples.png", "payoff.png", "sweep.png"})
OF_RUNS = "of runs/"  # key of such folders among those left out; keys of folders end in a slash
LEAST_KEPT = 10_000  # images; fewer are listed quickly enough without a cache
SETTLED = 2.0  # seconds since a folder's last change; another within the clock's tick would be missed
RULES = b"2\0"  # version of the rules on which files are data: a new number invalidates older lists
OUTDATED = 7 * 86_400  # seconds; an active run may still need an older list

Stamp = tuple[int, int]  # time of the last change in ns, inode
Folders = dict[str, Stamp]  # by path relative to the root


class Visited(NamedTuple):
    """A folder that a walk visits."""

    path: str
    relative: str
    """Path relative to the root; "." for the root."""
    images: list[str]
    others: list[str]


def list_images(root: Path, without: Path | None = None) -> tuple[NameList, Counter[str]]:
    """List the images below ``root`` as sorted relative paths, and count the other files and folders.

    Hidden files and folders are left out; links are followed.

    Args:
        without: a folder to exclude, such as the one that a run is written to.

    Returns:
        The names; and the numbers of files other than images by suffix, and of left-out folders by name
        (with a slash).
    """
    outside = _within(root, without)
    place = _place(root, outside)
    kept = _load(place, root) if place else None
    if kept is not None:
        return kept
    started = time.time()
    folders: Folders = {}
    others: Counter[str] = Counter()
    names: list[str] = []
    for visited in walk(root, outside, others):
        with contextlib.suppress(OSError):
            folders[visited.relative] = _stamp(visited.path)
        prefix = "" if visited.relative == "." else visited.relative + os.sep
        names += [prefix + name for name in visited.images]
        others.update(os.path.splitext(name)[1].lower() for name in visited.others)
    listed = NameList(sorted(names))
    settled = all(stamp[0] < (started - SETTLED) * 1e9 for stamp in folders.values())
    if place is not None and len(listed) >= LEAST_KEPT and settled:
        with contextlib.suppress(OSError, ValueError):
            return _keep(place, listed, folders, others), others
    return listed, others


def walk(root: Path, outside: str | None = None, left: Counter[str] | None = None) -> Iterator[Visited]:
    """Yield every folder that may hold data, each once; count the folders left out in ``left``.

    Args:
        outside: the real path of a folder to leave out; of the root, only a run's pictures are left out.
    """
    left = Counter() if left is None else left
    base = os.path.realpath(root)
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        relative = os.path.relpath(folder, root)
        top = relative == "."
        if real in seen or (real == outside and not top):
            subfolders.clear()
            continue
        seen.add(real)
        of_run = real == outside or _holds_run(files)
        if of_run and not top:
            left[OF_RUNS] += 1
            subfolders.clear()
            files = []
        left.update(f"{name}/" for name in subfolders if name.lower() in SYSTEM_FOLDERS)
        shown = sorted(name for name in subfolders if not is_hidden(name))
        subfolders[:] = [name for name in shown if not _leads_within(os.path.join(folder, name), base)]
        images: list[str] = []
        others: list[str] = []
        for name in files:
            if not name.startswith(".") and not (of_run and name in RUN_PICTURES):
                (images if is_image_name(name) else others).append(name)
        yield Visited(folder, relative, images, others)


def list_tables(root: Path) -> list[Path]:
    """List the parquet files below ``root``, sorted; hidden files and those of runs are left out."""
    found = []
    for visited in walk(root):
        found += [Path(visited.path, name) for name in visited.others if name.endswith(".parquet")]
    return sorted(found)


def holds_images(folder: Path, below: bool = True) -> bool:
    """Return whether a folder contains images, directly or, with ``below``, at any depth."""
    visited = walk(folder)
    if not below:
        first = next(visited, None)
        return first is not None and bool(first.images)
    return any(found.images for found in visited)


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is an image, and not hidden."""
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Return whether a folder or file of this name is not data."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def left_out(others: Counter[str]) -> Iterator[str]:
    """Yield sentences about the files and folders that `list_images` left out."""
    files = Counter({suffix: count for suffix, count in others.items() if not suffix.endswith("/")})
    folders = Counter({name: count for name, count in others.items() if name.endswith("/")})
    if files:
        kind = "file of another kind was" if files.total() == 1 else "files of other kinds were"
        yield f"{files.total()} {kind} left out: {suffix_counts(files)}"
    if folders:
        said = ", ".join(f"{name.rstrip('/')} ({count})" for name, count in folders.most_common())
        yield f"{counted(folders.total(), 'folder')} left out: {said}"


def counted(count: int, noun: str) -> str:
    """Format a count with its noun, such as ``3 folders``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def suffix_counts(others: Counter[str], most: int = 6) -> str:
    """Format the counts of suffixes, such as ``.heic (20), .txt (1)``, the most frequent first."""
    said = [f"{suffix or 'without suffix'} ({count})" for suffix, count in others.most_common(most)]
    return ", ".join([*said, *(["..."] if len(others) > most else [])])


def _holds_run(files: Iterable[str]) -> bool:
    there = set(files)
    return any(marks <= there for marks in RUN_MARKS)


def _leads_within(folder: str, base: str) -> bool:
    """Return whether a folder is a link to another folder that a walk through ``base`` visits anyway."""
    if not os.path.islink(folder):
        return False
    parts = os.path.relpath(os.path.realpath(folder), base).split(os.sep)
    return not any(is_hidden(part) for part in parts if part != os.curdir) and parts[0] != os.pardir


def _within(root: Path, folder: Path | None) -> str | None:
    """Return the real path of ``folder`` if it is the root or lies below the root; else None."""
    if folder is None:
        return None
    real, base = os.path.realpath(folder), os.path.realpath(root)
    return real if os.path.commonpath([real, base]) == base else None


def _stamp(folder: str) -> Stamp:
    status = os.stat(folder)
    return status.st_mtime_ns, status.st_ino


def _place(root: Path, outside: str | None) -> Path | None:
    """Return the cache folder for the list of ``root``; None if nothing is to be cached."""
    base = cache_folder()
    if base is None:
        return None
    key = RULES + os.fsencode(os.path.realpath(root)) + (b"\0" + os.fsencode(outside) if outside else b"")
    return base / "index" / hashlib.sha256(key).hexdigest()[:24]


@dataclass(frozen=True)
class _Kept:
    """Content of folders.json."""

    names: BareName
    folders: dict[str, tuple[Whole, Whole]]
    others: dict[str, Count]


def _load(place: Path, root: Path) -> tuple[NameList, Counter[str]] | None:
    file = place / "folders.json"
    try:
        kept = checked(_Kept, read_json(file), str(file))
        for folder, stamp in kept.folders.items():
            if _stamp(os.path.join(root, folder)) != stamp:
                return None
        if os.curdir not in kept.folders:
            return None
        return NameList.load(place / kept.names), Counter(kept.others)
    except (OSError, ValueError):
        return None


def _keep(place: Path, names: NameList, folders: Folders, others: Counter[str]) -> NameList:
    """Cache the list, then the stamps that validate it; older lists are kept for a while. Raises OSError."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{hashlib.sha256(names.joined()).hexdigest()[:16]}.names"
    names.save(file)
    part = place / f"folders.json.{os.getpid()}.part"
    part.write_text(json.dumps({"names": file.name, "folders": folders, "others": others}))
    part.replace(place / "folders.json")
    for other in place.iterdir():
        if other != file and other.stat().st_mtime < time.time() - OUTDATED and other.suffix != ".json":
            other.unlink(missing_ok=True)
    return NameList.load(file)
