"""Results of measurements, cached as small files in the user's cache folder."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from fastmim.errors import UsageError
from fastmim.system.documents import checked, read_json

SWITCH = "FASTMIM_CACHE"  # path of another folder, or 'off'


def cache_folder() -> Path | None:
    """Return $FASTMIM_CACHE, or fastmim in the user's cache folder; None if the cache is off.

    Where the system's cache folder is not ~/.cache (macOS, Windows), an existing ~/.cache/fastmim is used.
    """
    told = os.environ.get(SWITCH)
    if told == "off":
        return None
    if told:
        return Path(told).expanduser()
    usual = user_cache_path("fastmim", appauthor=False)
    earlier = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastmim"
    return earlier if earlier.is_dir() and not usual.is_dir() else usual


def cached_on_disk(
    kind: str,
    key: dict[str, Any],
    find_out: Callable[[], dict[str, Any]],
    form: type = dict[str, Any],
    keep: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """Return the cached result for ``key``, or else call ``find_out()`` and cache its result.

    Processes that ask at the same time all get the result of one of them. A cache that cannot be written, or
    that contains invalid data, is ignored.

    Args:
        kind: folder within the cache.
        key: plain values that the result depends on.
        form: type of the result: a dataclass, or another type that pydantic supports.
        keep: called after ``find_out``; returns whether the result may be cached.
    """
    # Read the cached result.
    folder = cache_folder()
    if folder is None:
        return find_out()
    text = json.dumps(key, sort_keys=True)
    file = folder / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    try:
        return _found(file, form)
    except UsageError:
        with contextlib.suppress(OSError):
            file.unlink()  # so that a valid result can replace it
    except OSError:
        pass
    # Find the result and cache it.
    found = find_out()
    if not keep():
        return found
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
            json.dump({"key": key, "found": found}, temporary, indent=1)
        try:
            os.link(temporary.name, file)  # fails if another process was first; its result is used
        finally:
            Path(temporary.name).unlink()
    with contextlib.suppress(OSError, UsageError):
        return _found(file, form)
    return found


def _found(file: Path, form: type) -> dict[str, Any]:
    """Read a cached result. Raises OSError, or UsageError if it has another form."""
    kept = checked(dict[str, Any], read_json(file), str(file))
    answer: Any = checked(form, kept.get("found"), str(file))
    return asdict(answer) if is_dataclass(answer) and not isinstance(answer, type) else dict(answer)
