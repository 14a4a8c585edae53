"""Settings of probes and embeddings, and checks that need no torch."""

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
from fastmim.weights.spec import check_source, parse_weights

Kind = Literal["linear", "knn", "attentive"]
SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of `fastmim probe`."""

    encoder: str = ""
    """A run's folder, its encoder.safetensors, or timm:NAME; or, with --model, a file with timm's keys or a
    released checkpoint: mae:FILE, simmim:FILE or fastmim:FILE."""
    data: str = ""
    """Labelled images, as for `fastmim finetune`."""
    kind: Kind = "linear"
    """linear: a linear classifier; knn: the nearest neighbours; attentive: a linear classifier on features
    pooled by an attention layer."""
    image_size: int | tuple[int, int] | None = None
    """Image size in pixels: side, or height and width. Default: that of the weights."""
    labels: str | None = None
    """Labels to use: a share of each class (0.01), or a number per class (10/class). Default: all."""
    val_share: Share = 0.2
    """Share of each class that is held out for validation, if the data has no validation split."""
    split_seed: NonNegativeInt = 0
    """Random seed of the train/validation split."""
    seed: NonNegativeInt = 0
    """Random seed of the labels to use, and of an attentive probe's weights and order."""
    neighbours: PositiveInt = 20
    """For knn: number of neighbours."""
    temperature: PositiveFloat = 0.07
    """For knn: neighbours are weighted by exp(cosine / temperature)."""
    epochs: PositiveInt = 20
    """For attentive: passes over the training images."""
    base_lr: PositiveFloat = 1e-3
    """For attentive: AdamW's learning rate for a batch of 256."""
    columns: Columns = field(default_factory=Columns)
    max_unreadable: NonNegativeFloat = 0.05
    """Maximum share of unreadable images."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Largest image in pixels; larger ones count as unreadable."""
    workers: NonNegativeInt | None = None
    """Processes that read images. Default: number of CPUs less one, at most 8."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    model: str | None = None
    """package.module:factory that the encoder's file names, which is not imported otherwise; or timm name of
    the backbone, if the file does not name it."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.labels is not None:
            parse_labels(self.labels)


@dataclass(frozen=True)
class EmbedConfig:
    """Settings of `fastmim embed`."""

    encoder: str = ""
    """A run's folder, its encoder.safetensors, or timm:NAME; or, with --model, a file with timm's keys or a
    released checkpoint: mae:FILE, simmim:FILE or fastmim:FILE."""
    data: str = ""
    """Images, as for `fastmim pretrain`."""
    out: str = ""
    """Parquet file to write, with columns image (name), class (if the data has classes) and embedding."""
    image_size: int | tuple[int, int] | None = None
    """Image size in pixels: side, or height and width. Default: that of the weights."""
    columns: Columns = field(default_factory=Columns)
    overwrite: bool = False
    """Replace an existing file."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Largest image in pixels; larger ones are left out."""
    workers: NonNegativeInt | None = None
    """Processes that read images. Default: number of CPUs less one, at most 8."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    model: str | None = None
    """package.module:factory that the encoder's file names, which is not imported otherwise; or timm name of
    the backbone, if the file does not name it."""

    def __post_init__(self) -> None:
        check_bounds(self)


def check_probe(config: ProbeConfig) -> None:
    """Raise UsageError if a probe's settings are incomplete, or its data does not exist."""
    check_given(config, {"data": "give a folder with train/ and val/, or demo:digits to try it"})
    check_encoder(config.encoder)
    check_data(config.data)
    check_source(config.encoder, "encoder")


def check_embedding(config: EmbedConfig) -> None:
    """Raise UsageError if an embedding's settings are incomplete, or its file must not be written."""
    check_given(config, {"data": "give a folder of images", "out": "give a parquet file to write"})
    file = Path(config.out).expanduser()
    if file.is_dir():
        raise UsageError(f"out: {file} is a folder; give a file, such as {file / 'features.parquet'}")
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"out: {file.name}: the output is parquet, so the name must end in .parquet; pandas.read_parquet "
            "and pyarrow read it and write other formats"
        )
    if file.exists() and not config.overwrite:
        raise UsageError(f"out: {file} already exists; --overwrite replaces it")
    check_encoder(config.encoder)
    check_data(config.data)
    check_source(config.encoder, "encoder")


def check_encoder(encoder: str) -> None:
    """Raise UsageError if ``encoder`` has no trained weights."""
    if not parse_weights(encoder).has_weights:
        raise UsageError("encoder is missing: give a run's folder, an encoder.safetensors or timm:NAME")
