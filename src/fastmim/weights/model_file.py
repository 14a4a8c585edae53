"""A trained segmenter or detector: model.safetensors, with its description in the header."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
from pydantic import Field
from torch import Tensor, nn

from fastmim._version import __version__
from fastmim.encoders.adapter import Encoder
from fastmim.errors import UsageError
from fastmim.system.documents import Whole, checked, parse_json
from fastmim.system.files import write_atomically
from fastmim.system.size import Size
from fastmim.weights.encoder_file import (
    MOST_CHANNELS,
    Deviation,
    Mean,
    Side,
    Word,
    check_finite,
)

MODEL = "model.safetensors"
KEY = "fastmim_model"  # of the description in the header
MOST_NAMES = 4096


@dataclass(frozen=True)
class ModelDescription:
    """What rebuilds a model and prepares its images."""

    task: Literal["segment", "detect"]
    model: Word
    """Name of the backbone."""
    kwargs: dict[str, Any]
    """Arguments of the backbone at ``encoder_size``."""
    encoder_size: tuple[Side, Side]
    """(H, W) of the backbone's input."""
    image_size: tuple[Side, Side]
    """(H, W) of crops and windows, in pixels."""
    in_chans: Annotated[Whole, Field(ge=1, le=MOST_CHANNELS)]
    mean: tuple[Mean, ...]
    std: tuple[Deviation, ...]
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_NAMES)]
    settings: dict[str, Any]
    """Head, evaluation and scaling, as the task's configuration names them."""
    fastmim_version: Word


def describe_model(
    task: Literal["segment", "detect"],
    encoder: Encoder,
    image_size: Size,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: tuple[str, ...],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Return the description of a model, see `ModelDescription`."""
    return {
        "task": task,
        "model": encoder.model_name,
        "kwargs": encoder.model_kwargs,
        "encoder_size": list(encoder.image_size),
        "image_size": list(image_size),
        "in_chans": encoder.in_chans,
        "mean": list(mean),
        "std": list(std),
        "classes": list(classes),
        "settings": settings,
        "fastmim_version": __version__,
    }


def save_model(run: Path, model: nn.Module, description: dict[str, Any]) -> None:
    """Write model.safetensors: the weights of the whole model, with the description in the header."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    content = safetensors.torch.save(state, metadata={KEY: json.dumps(description)})
    write_atomically(run / MODEL, lambda file: file.write(content))


def read_model_description(run_or_file: str | Path) -> tuple[Path, ModelDescription]:
    """Return the path and the description of a run's model.safetensors; the weights are not read.

    The names in the description are only read.

    Raises:
        UsageError: there is no such file, or it was not written by fastmim.
    """
    path = Path(run_or_file).expanduser()
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{run_or_file} holds no {MODEL}; give the folder of a finished run, or that file")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
    if text is None:
        raise UsageError(
            f"{file} does not describe its model: it was not written by fastmim segment or detect"
        )
    return file, checked(ModelDescription, parse_json(text, str(file)), str(file))


def read_model(run_or_file: str | Path) -> tuple[ModelDescription, dict[str, Tensor]]:
    """Return the description and the weights of a run's folder or of its model.safetensors.

    Raises:
        UsageError: as for `read_model_description`, or the weights are not finite.
    """
    file, described = read_model_description(run_or_file)
    try:
        state = safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
    check_finite(state, str(file))
    return described, state


def _unreadable(file: Path, error: Exception) -> UsageError:
    return UsageError(f"{file} is not a readable safetensors file: {error}")
