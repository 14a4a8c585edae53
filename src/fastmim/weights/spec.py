"""Parse the source of weights: a run's folder, a file, timm's weights of a model, or none.

This module does not import torch, so that configurations can be checked without it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fastmim.errors import UsageError

WEIGHTS = "encoder.safetensors"
SCRATCH = "none"
TIMM = "timm:"
Layout = Literal["mae", "simmim", "fastmim"]
"""Origin of a released checkpoint."""


@dataclass(frozen=True)
class WeightsSpec:
    """One source of weights."""

    kind: Literal["missing", "scratch", "timm", "released", "file"]
    """missing: none is given; scratch: newly initialised weights; timm: timm's weights of a model; released:
    a released checkpoint; file: a run's folder, its encoder.safetensors, or a file with timm's keys."""
    text: str
    """The source as given."""
    name: str = ""
    """Model name, for timm."""
    file: str = ""
    """Path as given, for files and released checkpoints."""
    layout: Layout | None = None
    """Origin, for released checkpoints."""

    @property
    def has_weights(self) -> bool:
        """Whether the source has trained weights."""
        return self.kind in ("timm", "released", "file")

    @property
    def names_its_model(self) -> bool:
        """Whether the source names its model; a path without a suffix is taken for a run's folder."""
        return self.kind == "timm" or (self.kind == "file" and not self.path.suffix)

    @property
    def path(self) -> Path:
        """The file or folder."""
        return Path(self.file).expanduser()


def parse_weights(text: str | Path) -> WeightsSpec:
    """Parse ``timm:NAME``, ``none``, ``mae:FILE`` (also ``simmim:``, ``fastmim:``), or a path."""
    text = str(text)
    if not text:
        return WeightsSpec("missing", text)
    if text == SCRATCH:
        return WeightsSpec("scratch", text)
    if text.startswith(TIMM):
        return WeightsSpec("timm", text, name=text.removeprefix(TIMM))
    for layout in get_args(Layout):
        if text.startswith(f"{layout}:"):
            return WeightsSpec("released", text, file=text.removeprefix(f"{layout}:"), layout=layout)
    return WeightsSpec("file", text, file=text)


def check_source(text: str, setting: str) -> None:
    """Raise UsageError if ``text`` names a file that does not exist, or a folder without weights.

    Args:
        setting: name of the field that holds ``text``, for messages.
    """
    spec = parse_weights(text)
    if not spec.file:
        return
    if spec.path.is_dir() and not (spec.path / WEIGHTS).is_file():
        raise UsageError(f"{setting} = {text}: {holds_no_weights(spec.file)}")
    if not spec.path.exists():
        raise UsageError(
            f"{setting} = {text}: there is no such file or folder; give a run's folder, a file or timm:NAME"
        )


def check_not_in(out: str, source: str, setting: str) -> None:
    """Raise UsageError if the run would be written to the folder of the weights that it starts from."""
    spec = parse_weights(source)
    run = Path(out).expanduser().resolve()
    if spec.file and run in (place := spec.path.resolve(), *place.parents[:1]):
        raise UsageError(f"out: {out} is the folder of {setting} = {source}; give another folder")


def holds_no_weights(path: str | Path) -> str:
    """Say that there is no file with weights."""
    return f"{path} holds no {WEIGHTS}; give a finished run's folder or that file"
