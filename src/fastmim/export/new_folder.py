"""Write an export to a temporary folder, and rename it when it is complete."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import safetensors

from fastmim.errors import RunError, first_line


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder that replaces ``folder`` if the block succeeds, and is deleted if it fails.

    Raises:
        RunError: it cannot be written.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        yield part
        earlier = part.with_suffix(".old")
        if folder.exists():
            folder.rename(earlier)
        part.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise RunError(f"cannot write {folder}: {reason}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
