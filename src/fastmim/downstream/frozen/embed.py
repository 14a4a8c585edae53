"""Write features of images to a parquet file, with one row per image: name, class and features."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastmim._version import __version__
from fastmim.data.labelled import class_names
from fastmim.data.sources.base import ImageSource, notes_of
from fastmim.data.sources.names import as_text
from fastmim.data.sources.open import open_images
from fastmim.downstream.frozen.features import Extractor, build_extractor
from fastmim.downstream.frozen.settings import EmbedConfig, check_embedding
from fastmim.errors import RunError, why
from fastmim.system.files import replacing
from fastmim.system.progress import Progress, no_progress


class Embedded(NamedTuple):
    """Result of `embed`."""

    file: Path
    images: int
    width: int
    unreadable: list[str]
    """Name and reason of each unreadable image, which is left out."""
    notes: tuple[str, ...] = ()
    """Messages about the images for the user."""


def embed(config: EmbedConfig, trust_code: bool = False, progress: Progress = no_progress) -> Embedded:
    """Write the mean of a frozen backbone's last feature map for every image that can be read.

    Args:
        trust_code: import and call any factory that the encoder's file names.
        progress: called from time to time with (images done, images in total).

    Raises:
        UsageError: a setting, path or model is invalid.
        RunError: no image could be read, or the file could not be written.
    """
    check_embedding(config)
    file = Path(config.out).expanduser()
    source = open_images(config.data, config.columns)
    extractor = build_extractor(
        config.encoder,
        config.image_size,
        config.accelerator,
        workers=config.workers,
        max_pixels=config.max_pixels,
        model=config.model,
        trust_code=trust_code,
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as beside:
            unreadable, images = _write(beside, extractor, source, config.data, progress)
    except OSError as error:
        raise RunError(f"cannot write {file}: {why(error)}") from error
    return Embedded(file, images, extractor.encoder.width, unreadable, notes_of(source))


def _write(
    file: Path, extractor: Extractor, source: ImageSource, data: str, progress: Progress
) -> tuple[list[str], int]:
    width = extractor.encoder.width
    classes = class_names(data, source)
    columns = [("image", pa.string()), ("embedding", pa.list_(pa.float32(), width))]
    if classes is not None:
        columns.insert(1, ("class", pa.string()))
    facts = {"encoder": Path(str(extractor.metadata["from"])).name, "model": extractor.metadata["model"]}
    schema = pa.schema(columns, metadata={**facts, "fastmim_version": __version__})
    broken: list[str] = []
    images = 0
    with pq.ParquetWriter(file, schema) as writer:
        for values, indices, unreadable in extractor.features(source, np.arange(len(source))):
            broken += [f"{as_text(item.name)}: {item.reason}" for item in unreadable]
            images += len(indices)
            progress(images + len(broken), len(source))
            if not len(indices):
                continue
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.numpy().ravel()), width)
            arrays = [pa.array([as_text(source.name(int(index))) for index in indices]), vectors]
            if classes is not None:
                arrays.insert(1, pa.array([classes[int(index)] for index in indices]))
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    if not images:
        raise RunError(f"none of the images of {data} can be read; the first is {broken[0]}")
    return broken, images
