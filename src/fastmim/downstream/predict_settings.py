"""Settings of predictions, and checks that need no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fastmim.config.usage import check_given
from fastmim.data.settings import MAX_PIXELS
from fastmim.data.sources.columns import Columns
from fastmim.data.sources.files import check_data
from fastmim.errors import UsageError
from fastmim.system.bounds import NonNegativeInt, PositiveInt, check_bounds


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `fastmim predict`."""

    run: str = ""
    """Folder of a finished run of fastmim finetune, segment or detect."""
    data: str = ""
    """Images, as for `fastmim pretrain`, or one image file."""
    out: str = ""
    """Folder for predictions.json or .parquet and, for segmentation, masks/."""
    format: Literal["json", "parquet"] = "json"
    """Format of the predictions."""
    top_k: PositiveInt = 5
    """For classification: most probable classes of an image to write."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Least score of a detection or class to write. Detections below the run's head.score are not found."""
    masks: Literal["ids", "colours"] = "ids"
    """For segmentation: PNG files of class numbers, from 0, or of colours."""
    pictures: NonNegativeInt = 0
    """Number of images to draw with their predictions, in pictures/."""
    overwrite: bool = False
    """Write into a folder that holds predictions."""
    batch_size: PositiveInt = 8
    """Images, or windows of segmentation, that are computed at a time."""
    columns: Columns = field(default_factory=Columns)
    max_pixels: PositiveInt = MAX_PIXELS
    """Largest image in pixels; larger ones count as unreadable."""
    workers: NonNegativeInt | None = None
    """Processes that read images. Default: number of CPUs less one, at most 8."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    model: str | None = None
    """package.module:factory that the run's file names, which is not imported otherwise."""

    def __post_init__(self) -> None:
        check_bounds(self)


def check_prediction(config: PredictConfig) -> None:
    """Raise UsageError if settings are missing, or the folder holds predictions already."""
    check_given(
        config,
        {
            "run": "give the folder of a finished run",
            "data": "give a folder of images, or one image",
            "out": "give a folder for the predictions",
        },
    )
    check_data(config.data)
    run, out = Path(config.run).expanduser(), Path(config.out).expanduser()
    if not run.exists():
        raise UsageError(f"run: {run} does not exist; give the folder of a finished run")
    if out.is_file():
        raise UsageError(f"out: {out} is a file; give a folder")
    if run.resolve() == out.resolve():
        raise UsageError(f"out: {out} is the run's folder; give another folder")
    found = [name for name in ("predictions.json", "predictions.parquet") if (out / name).exists()]
    if found and not config.overwrite:
        raise UsageError(f"out: {out / found[0]} already exists; --overwrite replaces it")
