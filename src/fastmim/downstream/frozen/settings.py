"""Settings of probes and embeddings, and what of them can be checked first. This module needs no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastmim.config.usage import check_given
from fastmim.data.settings import MAX_PIXELS, parse_labels
from fastmim.data.sources.columns import Columns
from fastmim.data.sources.files import check_data
from fastmim.errors import UsageError
from fastmim.system.bounds import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    check_bounds,
)
from fastmim.weights.spec import parse_weights

Kind = Literal["linear", "knn", "attentive"]
SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class ProbeConfig:
    """Everything that `fastmim probe` can be told."""

    encoder: str = ""
    """A run's folder, its encoder.safetensors, or timm:NAME; or with --model a file of timm's keys, or a
    released checkpoint as mae:FILE, simmim:FILE or fastmim:FILE."""
    data: str = ""
    """Images with classes, as for `fastmim finetune`."""
    kind: Kind = "linear"
    """linear: a linear classifier; knn: votes of the nearest neighbours; attentive: a linear classifier on
    features that one attention layer pools."""
    image_size: int | tuple[int, int] | None = None
    """Pixels, a side or height and width. Default: that of the weights."""
    labels: str | None = None
    """Labels to use: a share of each class (0.01), or a number of each (10/class). Default: all."""
    val_share: Share = 0.2
    """Share of each class that is kept to measure on, where the data has no such split."""
    split_seed: NonNegativeInt = 0
    """Draws them."""
    seed: NonNegativeInt = 0
    """Draws the labels to use, and an attentive probe's weights and order."""
    neighbours: PositiveInt = 20
    """Of knn: how many vote."""
    temperature: PositiveFloat = 0.07
    """Of knn: a vote weighs exp(cosine / temperature)."""
    epochs: PositiveInt = 20
    """Of attentive: passes over the training images."""
    base_lr: PositiveFloat = 1e-3
    """Of attentive: AdamW's learning rate for a batch of 256."""
    columns: Columns = field(default_factory=Columns)
    max_unreadable: NonNegativeFloat = 0.05
    """Share of the images that may be unreadable."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Most pixels of an image; larger ones count as unreadable."""
    workers: NonNegativeInt | None = None
    """Processes that read images. Default: this machine's CPUs, less one, at most 8."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    model: str | None = None
    """The package.module:factory that the encoder's file names, without which that is not imported; or timm's
    name of the backbone of a file that does not name it."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.labels is not None:
            parse_labels(self.labels)


@dataclass(frozen=True)
class EmbedConfig:
    """Everything that `fastmim embed` can be told."""

    encoder: str = ""
    """A run's folder, its encoder.safetensors, or timm:NAME; or with --model a file of timm's keys, or a
    released checkpoint as mae:FILE, simmim:FILE or fastmim:FILE."""
    data: str = ""
    """Images, as for `fastmim pretrain`."""
    out: str = ""
    """Parquet file to write: columns image (name), class (where the data has classes) and embedding."""
    image_size: int | tuple[int, int] | None = None
    """Pixels, a side or height and width. Default: that of the weights."""
    columns: Columns = field(default_factory=Columns)
    overwrite: bool = False
    """Replace the file."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Most pixels of an image; larger ones are left out."""
    workers: NonNegativeInt | None = None
    """Processes that read images. Default: this machine's CPUs, less one, at most 8."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    model: str | None = None
    """The package.module:factory that the encoder's file names, without which that is not imported; or timm's
    name of the backbone of a file that does not name it."""

    def __post_init__(self) -> None:
        check_bounds(self)


def check_probe(config: ProbeConfig) -> None:
    """Raise UsageError where a probe lacks something, or its data do not exist."""
    check_given(config, {"data": "give a folder with train/ and val/, or demo:digits to try it"})
    check_encoder(config.encoder)
    check_data(config.data)


def check_embedding(config: EmbedConfig) -> None:
    """Raise UsageError where an embedding lacks something, or its file cannot be written."""
    check_given(config, {"data": "give a folder of images", "out": "give a parquet file to write"})
    file = Path(config.out).expanduser()
    if file.is_dir():
        raise UsageError(f"out: {file} is a folder; give a file, such as {file / 'features.parquet'}")
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"out: {file.name}: what is written is parquet, so the name has to end in .parquet; "
            "pandas.read_parquet and pyarrow read it and write other formats"
        )
    if file.exists() and not config.overwrite:
        raise UsageError(f"out: {file} is there already; --overwrite replaces it")
    check_encoder(config.encoder)
    check_data(config.data)


def check_encoder(encoder: str) -> None:
    """Raise UsageError where no weights are named."""
    if not parse_weights(encoder).has_weights:
        raise UsageError("encoder is missing: give a run's folder, an encoder.safetensors or timm:NAME")
