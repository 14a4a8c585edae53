"""What was found out once on this machine and need not be again: small files in the user's cache folder."""

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

SWITCH = "FASTMIM_CACHE"  # another folder, or 'off'


def cache_folder() -> Path | None:
    """$FASTMIM_CACHE, or the system's cache folder for fastmim; None where it is switched off.

    Where that is not ~/.cache (macOS, Windows), a folder that lies there already is kept.
    """
    told = os.environ.get(SWITCH)
    if told == "off":
        return None
    if told:
        return Path(told).expanduser()
    usual = user_cache_path("fastmim", appauthor=False)
    earlier = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastmim"
    return earlier if earlier.is_dir() and not usual.is_dir() else usual


def remembered(
    kind: str,
    key: dict[str, Any],
    find_out: Callable[[], dict[str, Any]],
    form: type = dict[str, Any],
    keep: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """What ``find_out()`` returned when it was first asked for ``key`` here.

    Of several processes that ask at once, all get what one of them found. A cache that cannot be written,
    or holds something else, is done without.

    Args:
        kind: the folder within the cache.
        key: plain values that the answer depends on.
        form: what an answer is: a dataclass, or another type that pydantic knows.
        keep: asked after ``find_out``: whether the answer will hold later, too.
    """
    folder = cache_folder()
    if folder is None:
        return find_out()
    text = json.dumps(key, sort_keys=True)
    file = folder / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    try:
        return _found(file, form)
    except UsageError:
        with contextlib.suppress(OSError):
            file.unlink()  # so that the answer can be written in its place
    except OSError:
        pass
    found = find_out()
    if not keep():
        return found
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
            json.dump({"key": key, "found": found}, temporary, indent=1)
        try:
            os.link(temporary.name, file)  # fails where another process was first: then its answer holds
        finally:
            os.unlink(temporary.name)
    with contextlib.suppress(OSError, UsageError):
        return _found(file, form)
    return found


def _found(file: Path, form: type) -> dict[str, Any]:
    """The answer in a file. Raises OSError, or UsageError where it is of another form."""
    kept = checked(dict[str, Any], read_json(file), str(file))
    answer: Any = checked(form, kept.get("found"), str(file))
    return asdict(answer) if is_dataclass(answer) and not isinstance(answer, type) else dict(answer)
