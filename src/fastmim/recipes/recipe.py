"""What a recipe is, how the paper's tables become recipes, and the small run that tries one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from inspect import getdoc
from types import ModuleType
from typing import Any, NamedTuple, cast

import yaml

from fastmim.config import PretrainConfig, resolved
from fastmim.data.crops import IMAGENET_MEAN, IMAGENET_STD
from fastmim.encoders.adapter import Encoder, build_encoder
from fastmim.encoders.models import without_memory
from fastmim.recipes.backbones import narrow_kwargs
from fastmim.targets import build_target
from fastmim.train.schedules import ScheduleConfig

HARDWARE = "8 V100 GPUs"


class Cell(NamedTuple):
    """A run of a row: what its function takes, the end of its name, and the paper's figure for it."""

    columns: tuple[Any, ...]
    label: str
    figure: str


@dataclass(frozen=True)
class Table:
    """A table of the paper. Its rows are the functions named after it: ``table4_swin_b`` gives the
    configuration of the row ``swin_b``."""

    name: str
    title: str
    """What is compared, and what the figures are."""
    key: str
    """Of the table in paper.yaml."""
    cells: Callable[[str, Any], Iterator[Cell]]
    """The runs of a row, from its key and its entry in paper.yaml."""


@dataclass(frozen=True)
class Recipe:
    """One run of the paper."""

    name: str
    """TABLE/ROW, or TABLE/ROW-COLUMN where the row holds several runs."""
    table: Table
    title: str
    notes: str
    """What the paper does not say or contradicts."""
    config: PretrainConfig
    """Only ``data`` and ``out`` are missing."""
    paper: str
    """The paper's figure. It was not measured with this code."""
    hardware: str = HARDWARE
    """What the paper used."""

    @property
    def command(self) -> str:
        """The run as it is meant."""
        data = "imagenet22k" if "in22k" in self.name else "imagenet/train"
        return f"fastmim pretrain --recipe {self.name} --data {data} --out runs/{self.name} --devices 8"


@cache
def paper_figures() -> dict[str, Any]:
    """The paper's tables as they stand in paper.yaml."""
    text = files("fastmim.recipes").joinpath("paper.yaml").read_text(encoding="utf-8")
    figures: dict[str, Any] = yaml.safe_load(text)
    return figures


def recipes_of(table: Table, module: ModuleType) -> Iterator[Recipe]:
    """The recipes of a table, in the paper's order; rows without a function are other people's methods."""
    for key, entry in _rows(paper_figures()[table.key]):
        row = getattr(module, f"{table.name}_{key}", None)
        if row is None:
            continue
        title, _, notes = (getdoc(row) or "").partition("\n")
        for columns, label, figure in table.cells(key, entry):
            name = "-".join(filter(None, (key.replace("_", "-"), label)))
            yield Recipe(f"{table.name}/{name}", table, title, notes.strip(), row(*columns), figure)


def _rows(entry: Any) -> Iterator[tuple[str, Any]]:
    """The rows of a table. Those of a list (table 8) are named after data and size of pre-training."""
    if isinstance(entry, dict):
        yield from entry.items()
        return
    rows: dict[str, list[Any]] = {}
    for line in entry:
        rows.setdefault(f"{line[0]}_{line[2]}", []).append(line)
    yield from rows.items()


def resolve(config: PretrainConfig) -> PretrainConfig:
    """``config`` with what a run would derive from the backbone written out; no weights are drawn."""
    build = partial(
        build_encoder, config.model, config.size, config.in_chans, config.model_kwargs, config.encoder
    )
    encoder = cast(Encoder, without_memory(build))
    cell = build_target(config.target, encoder.stride).cell
    mean, std = config.crop.mean or IMAGENET_MEAN, config.crop.std or IMAGENET_STD
    return resolved(config, encoder.stride, cell, encoder.full_kwargs, mean, std)


def smoke(config: PretrainConfig) -> PretrainConfig:
    """The same run with a narrow backbone and decoder, on a CPU, for two steps or one a stage."""
    return replace(
        config,
        data=config.data or "demo:photos",
        model_kwargs={**config.model_kwargs, **narrow_kwargs(config.model)},
        decoder=replace(config.decoder, width=32),
        steps=None if config.stages else 2,
        stages=tuple(
            replace(stage, epochs=None, steps=1, batch_size=None, micro_batch=None) for stage in config.stages
        ),
        batch_size=4,
        held_out=4,
        workers=0,
        accelerator="cpu",
        log_every_steps=1,
    )


__all__ = ["Cell", "Recipe", "ScheduleConfig", "Table"]
