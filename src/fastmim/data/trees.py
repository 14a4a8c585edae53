"""Trees of folders that hold images, on a disk or as names in an archive."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from fastmim.data.sources.index import holds_images, is_hidden

Folder = tuple[str, ...]  # parts of a path


class Tree(Protocol):
    """A tree of folders that hold images."""

    def folders(self, place: Folder) -> list[str]:
        """Return the sorted names of the folders in ``place`` that have images below them."""
        ...

    def has_images(self, place: Folder) -> bool:
        """Return whether images lie directly in ``place``."""
        ...

    def advice(self, place: str, name: str) -> str:
        """Return advice on how to give a single folder as the data."""
        ...


class NamesTree:
    """Folder tree of path names, such as those in an archive."""

    def __init__(self, folders: Iterable[Folder]) -> None:
        self._within: dict[Folder, set[str]] = {}
        self._with_images = set(folders)
        for parts in self._with_images:
            for depth, name in enumerate(parts):
                self._within.setdefault(parts[:depth], set()).add(name)

    def folders(self, place: Folder) -> list[str]:
        return sorted(self._within.get(place, ()))

    def has_images(self, place: Folder) -> bool:
        return place in self._with_images

    def advice(self, place: str, name: str) -> str:
        return f"a tar or pack of {name} alone"


class DiskTree:
    """Folder tree on a disk."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[Folder, list[str]] = {}

    def folders(self, place: Folder) -> list[str]:
        if place not in self._known:
            self._known[place] = self._find(self._root.joinpath(*place))
        return self._known[place]

    @staticmethod
    def _find(folder: Path) -> list[str]:
        try:
            with os.scandir(folder) as entries:
                inner = [entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
        except OSError:
            return []
        return sorted(name for name in inner if holds_images(folder / name))

    def has_images(self, place: Folder) -> bool:
        return holds_images(self._root.joinpath(*place), below=False)

    def advice(self, place: str, name: str) -> str:
        return f"{place}/{name}"
