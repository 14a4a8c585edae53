"""Write the predictions of a run's model for all images of a source."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from PIL import Image

from fastmim._version import __version__
from fastmim.data.annotations.masks import write_mask
from fastmim.data.decode.image import decode
from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.data.sources.base import ImageSource, MixedImages, notes_of
from fastmim.data.sources.index import is_image_name
from fastmim.data.sources.names import as_text
from fastmim.data.sources.open import open_images
from fastmim.downstream.detection.prediction import as_results
from fastmim.downstream.load_model import Classified, LoadedModel, Prediction, Segmented, load_model
from fastmim.downstream.predict_settings import PredictConfig, check_prediction
from fastmim.errors import RunError, why
from fastmim.report.masks import class_colours, coloured, displayed
from fastmim.report.objects import draw_objects, kept
from fastmim.system.files import replacing, write_atomically
from fastmim.system.hardware import loader_workers
from fastmim.system.progress import Progress, no_progress

FILES = {"json": "predictions.json", "parquet": "predictions.parquet"}
UNREADABLE = "unreadable.json"
MASKS, PICTURES = "masks", "pictures"
COVER = 0.55  # opacity of masks in pictures


class Predicted(NamedTuple):
    """Result of `predict`."""

    file: Path
    images: int
    unreadable: list[str]
    """Name and reason of each unreadable image."""
    notes: tuple[str, ...] = ()
    """Messages about the images for the user."""


def predict(config: PredictConfig, trust_code: bool = False, progress: Progress = no_progress) -> Predicted:
    """Write the predictions for every image that can be read.

    Args:
        trust_code: import and call any factory that the run's file names.
        progress: called after each image with (images done, images in total).

    Raises:
        UsageError: a setting, path or model is invalid.
        RunError: no image could be read, or a file could not be written.
    """
    check_prediction(config)
    source = _open(config)
    model = load_model(config.run, config.accelerator, config.model, trust_code)
    out = Path(config.out).expanduser()
    file = out / FILES[config.format]
    unreadable: list[UnreadableRecord] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        rows = []
        for row in _rows(model, source, config, out, unreadable):
            rows.append(row)
            progress(len(rows) + len(unreadable), len(source))
        if not rows:
            first = unreadable[0]
            raise RunError(f"none of the images can be read; the first is {first.name}: {first.reason}")
        _write(file, rows, model, config)
        broken = [{"image": as_text(record.name), "reason": record.reason} for record in unreadable]
        content = json.dumps(broken, indent=2).encode() + b"\n"
        write_atomically(out / UNREADABLE, lambda opened: opened.write(content))
    except OSError as error:
        raise RunError(f"cannot write to {out}: {why(error)}") from error
    said = [f"{as_text(record.name)}: {record.reason}" for record in unreadable]
    return Predicted(file, len(rows), said, notes_of(source))


def _open(config: PredictConfig) -> ImageSource:
    path = Path(config.data).expanduser()
    if path.is_file() and is_image_name(path.name):
        return MixedImages([str(path)])
    return open_images(config.data, config.columns, config.out)


def _rows(
    model: LoadedModel,
    source: ImageSource,
    config: PredictConfig,
    out: Path,
    unreadable: list[UnreadableRecord],
) -> Iterator[dict[str, Any]]:
    """Yield what is written for each image; masks and pictures are written on the way."""
    colours = class_colours(len(model.classes))
    drawn = 0
    workers = loader_workers(config.workers, 1)
    every = np.arange(len(source))
    for index, found in model.predictions(source, every, config.batch_size, workers, config.max_pixels):
        if isinstance(found, UnreadableRecord):
            unreadable.append(found)
            continue
        name = as_text(source.name(index))
        row = {"image": name, **_plain(found, index, model, config)}
        if isinstance(found, Segmented):
            row["mask"] = f"{MASKS}/{safe_name(name, index)}.png"
            content = write_mask(found.mask)
            if config.masks == "colours":
                content = _png(coloured(found.mask, colours))
            _write_below(out, row["mask"], content)
        if drawn < config.pictures:
            pixels = displayed(decode(source.read(index), model.in_chans, config.max_pixels))
            picture = _picture(pixels, found, model, config)
            _write_below(out, f"{PICTURES}/{safe_name(name, index)}.png", picture)
            drawn += 1
        yield row


def _plain(found: Prediction, index: int, model: LoadedModel, config: PredictConfig) -> dict[str, Any]:
    """Return a prediction as plain values."""
    if isinstance(found, Classified):
        pairs = list(zip(found.classes, found.probabilities, strict=True))[: config.top_k]
        chosen = [(name, value) for name, value in pairs if value >= config.threshold]
        return {"classes": [name for name, _ in chosen], "probabilities": [value for _, value in chosen]}
    if isinstance(found, Segmented):
        counts = np.bincount(found.mask.ravel(), minlength=len(model.classes))
        shares = {name: int(n) / found.mask.size for name, n in zip(model.classes, counts, strict=False) if n}
        return {"confidence": found.confidence, "shares": shares}
    shown = kept(found, found.scores >= config.threshold)
    rows = as_results(shown, index, range(len(model.classes)))
    objects = [
        {
            "class": model.classes[row["category_id"]],
            **{k: row[k] for k in row if k not in ("image_id", "category_id")},
        }
        for row in rows
    ]
    return {"objects": objects}


def safe_name(name: str, index: int) -> str:
    """Return a path below a folder for an image, without its suffix; a number if the name leads elsewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    parts = [part for part in path.parts if part not in ("/", ".")]
    if not parts or ".." in parts or any(":" in part or not part.isprintable() for part in parts):
        return f"{index:08d}"
    if path.is_absolute():
        parts = parts[-1:]
    return str(PurePosixPath(*parts[:-1], PurePosixPath(parts[-1]).stem or f"{index:08d}"))


def _write(file: Path, rows: list[dict[str, Any]], model: LoadedModel, config: PredictConfig) -> None:
    if config.format == "json":
        content = {
            "task": model.task,
            "classes": model.classes,
            "fastmim_version": __version__,
            "predictions": rows,
        }
        text = json.dumps(content, indent=1).encode() + b"\n"
        write_atomically(file, lambda opened: opened.write(text))
        return
    flat = [{**row, "shares": list(row["shares"].items())} if "shares" in row else row for row in rows]
    schema_metadata = {
        "task": model.task,
        "classes": json.dumps(model.classes),
        "fastmim_version": __version__,
    }
    if model.task == "segment":
        flat = [
            {**row, "shares": [{"class": name, "share": share} for name, share in row["shares"]]}
            for row in flat
        ]
    table = pa.Table.from_pylist(flat).replace_schema_metadata(schema_metadata)
    with replacing(file) as beside:
        pq.write_table(table, beside)


def _write_below(out: Path, name: str, content: bytes) -> None:
    file = out / name
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda opened: opened.write(content))


def _png(pixels: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _picture(pixels: np.ndarray, found: Prediction, model: LoadedModel, config: PredictConfig) -> bytes:
    """Draw a prediction over its image."""
    import io

    colours = class_colours(len(model.classes))
    height, width = pixels.shape[:2]
    if isinstance(found, Segmented):
        mixed = (1 - COVER) * pixels + COVER * coloured(found.mask, colours)
        return _png(mixed.astype(np.uint8))
    figure = Figure(figsize=(6, 6 * height / width + 0.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    if isinstance(found, Classified):
        axes.imshow(pixels)
        axes.set_axis_off()
        shown = zip(found.classes[:3], found.probabilities[:3], strict=True)
        axes.set_title(", ".join(f"{name} {100 * value:.0f} %" for name, value in shown), fontsize=9)
    else:
        draw_objects(
            axes,
            pixels,
            kept(found, found.scores >= max(config.threshold, 0.3)),
            (height, width),
            colours,
            model.classes,
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
