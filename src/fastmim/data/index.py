"""Which images lie below a folder: walked once, and kept for the next time where they are many.

What is kept is valid as long as each folder has the time and the inode that it had: one look a folder
instead of one a file, which sees every file that was added, removed or renamed.
"""

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fastmim.cache import cache_folder
from fastmim.data.names import NameList
from fastmim.documents import BareName, Whole, checked, read_json

IMAGE_SUFFIXES = frozenset({".npy"}) | frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)
LEAST_KEPT = 10_000  # images; fewer are walked in a moment
SETTLED = 2.0  # seconds since a folder's last change: within the clock's tick another would not be seen
OUTDATED = 7 * 86_400  # seconds: a run that is still going may need an older list

Stamp = tuple[int, int]  # time of the last change in ns, inode
Folders = dict[str, Stamp]  # by path relative to the root


def list_images(root: Path) -> tuple[NameList, Counter[str]]:
    """Sorted paths of the images below ``root``, relative to it; and how many other files of each suffix.

    Hidden files and folders are left out, links followed. The others are not counted where the list was
    kept from an earlier time.
    """
    place = _place(root)
    kept = _load(place, root) if place else None
    if kept is not None:
        return kept, Counter()
    started = time.time()
    folders: Folders = {}
    others: Counter[str] = Counter()
    names = _walk(root, folders, others)
    listed = NameList(sorted(names))
    settled = all(stamp[0] < (started - SETTLED) * 1e9 for stamp in folders.values())
    if place is not None and len(listed) >= LEAST_KEPT and settled:
        with contextlib.suppress(OSError, ValueError):
            return _keep(place, listed, folders), others
    return listed, others


def is_image_name(name: str) -> bool:
    base = os.path.basename(name)
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES


def _walk(root: Path, folders: Folders, others: Counter[str]) -> list[str]:
    seen = set()
    names = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        relative = os.path.relpath(folder, root)
        with contextlib.suppress(OSError):
            folders[relative] = _stamp(folder)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = "" if relative == "." else relative + os.sep
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES:
                names.append(prefix + name)
            else:
                others[suffix] += 1
    return names


def _stamp(folder: str) -> Stamp:
    status = os.stat(folder)
    return status.st_mtime_ns, status.st_ino


def _place(root: Path) -> Path | None:
    """The folder where the list of ``root`` is kept; None where nothing shall be."""
    base = cache_folder()
    if base is None:
        return None
    return base / "index" / hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]


@dataclass(frozen=True)
class _Kept:
    """What folders.json holds."""

    names: BareName
    folders: dict[str, tuple[Whole, Whole]]


def _load(place: Path, root: Path) -> NameList | None:
    file = place / "folders.json"
    try:
        kept = checked(_Kept, read_json(file), str(file))
        for folder, stamp in kept.folders.items():
            if _stamp(os.path.join(root, folder)) != stamp:
                return None
        return NameList.load(place / kept.names) if os.curdir in kept.folders else None
    except (OSError, ValueError):
        return None


def _keep(place: Path, names: NameList, folders: Folders) -> NameList:
    """Write the list, then what makes it valid; an older list stays for a while. Raises OSError."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{hashlib.sha256(names.joined()).hexdigest()[:16]}.names"
    names.save(file)
    part = place / f"folders.json.{os.getpid()}.part"
    part.write_text(json.dumps({"names": file.name, "folders": folders}))
    part.replace(place / "folders.json")
    for other in place.iterdir():
        if other != file and other.stat().st_mtime < time.time() - OUTDATED and other.suffix != ".json":
            other.unlink(missing_ok=True)
    return NameList.load(file)
