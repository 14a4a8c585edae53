"""Parse what a user gives as weights: a run's folder, a file, timm's weights of a model, or none.

This module imports no torch, so that configurations can parse weights, too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

SCRATCH = "none"
TIMM = "timm:"
Layout = Literal["mae", "simmim", "fastmim"]
"""Whose released checkpoint a file is."""


@dataclass(frozen=True)
class WeightsSpec:
    """One source of weights."""

    kind: Literal["missing", "scratch", "timm", "released", "file"]
    """missing: nothing is given; scratch: new weights; timm: those that timm has for a model; released: a
    checkpoint of another project; file: a run's folder, or a file of this project's or of timm's keys."""
    text: str
    """The source as it was given."""
    name: str = ""
    """Of timm: the model's name."""
    file: str = ""
    """Of files and released checkpoints: the path as it was given."""
    layout: Layout | None = None
    """Of released checkpoints: who released it."""

    @property
    def has_weights(self) -> bool:
        """Whether trained weights are named."""
        return self.kind in ("timm", "released", "file")

    @property
    def names_its_model(self) -> bool:
        """Whether the model is known by the source, as far as the text shows: a folder is a run's."""
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
