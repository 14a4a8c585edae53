"""Read and write encoder.safetensors: weights, model arguments and input format of an encoder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from fastmim._version import __version__
from fastmim.encoders.adapter import Encoder
from fastmim.errors import UsageError
from fastmim.system.documents import MOST_JSON, Finite, Whole, checked, parse_json, read_text, shown
from fastmim.system.files import write_atomically
from fastmim.weights.spec import WEIGHTS, holds_no_weights, parse_weights

ORIGIN = "encoder.json"

MOST_SIDE = 1 << 12  # pixels
MOST_CHANNELS = 1 << 12
MOST_LETTERS = 256

MOST_STATISTIC = 1e6  # of mean and std; std is at least its inverse, or images would overflow or be flat

Side = Annotated[Whole, Field(ge=1, le=MOST_SIDE)]
Mean = Annotated[Finite, Field(ge=-MOST_STATISTIC, le=MOST_STATISTIC)]
Deviation = Annotated[Finite, Field(ge=1 / MOST_STATISTIC, le=MOST_STATISTIC)]
Word = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)]


@dataclass(frozen=True)
class _Metadata:
    """Fields of a description that are checked; it may have others."""

    model: Word
    kwargs: dict[str, Any]
    image_size: tuple[Side, Side]
    """(H, W) in pixels."""
    in_chans: Annotated[Whole, Field(ge=1, le=MOST_CHANNELS)]
    mean: tuple[Mean, ...]
    std: tuple[Deviation, ...]
    method: Word
    full_kwargs: dict[str, Any] | None = None
    target: Word | None = None
    classes: tuple[str, ...] | None = None
    fine_tuned_from: dict[str, Any] | None = None
    trained_on: dict[str, Any] | None = None
    teacher: dict[str, Any] | None = None
    fastmim_version: Word | None = None
    released: str | None = None


def describe_encoder(
    encoder: Encoder, mean: tuple[float, ...], std: tuple[float, ...], method: str, target: str
) -> dict[str, Any]:
    """Return the contents of encoder.json: arguments that rebuild the model, and its input format.

    ``kwargs`` build the model whose keys equal those of the weights. If blocks were left out (encoder.depth),
    ``full_kwargs`` build the full model.
    """
    shortened = encoder.full_kwargs != encoder.model_kwargs
    return {
        "model": encoder.model_name,
        "kwargs": encoder.model_kwargs,
        **({"full_kwargs": encoder.full_kwargs} if shortened else {}),
        "image_size": list(encoder.image_size),
        "in_chans": encoder.in_chans,
        "mean": list(mean),
        "std": list(std),
        "method": method,
        "target": target,
        "fastmim_version": __version__,
    }


def save_encoder(run: Path, model: nn.Module, metadata: dict[str, Any], leave_out: str | None = None) -> None:
    """Write encoder.safetensors (timm's keys, with the description in its header) and encoder.json.

    Args:
        leave_out: name of modules whose weights are not written.
    """
    state = {}
    written = set()
    for name, value in model.state_dict().items():
        if leave_out in name.split("."):
            continue
        shared = value.data_ptr() in written  # safetensors stores no tensor under two names
        written.add(value.data_ptr())
        state[name] = (
            value.detach().cpu().contiguous().clone() if shared else value.detach().cpu().contiguous()
        )
    text = json.dumps(metadata, indent=2)
    weights = safetensors.torch.save(state, metadata={"fastmim": text})
    write_atomically(run / WEIGHTS, lambda file: file.write(weights))
    write_atomically(run / ORIGIN, lambda file: file.write(text.encode() + b"\n"))


def read_description(run_or_file: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and the description of an encoder file; arguments and errors as for `read_encoder`."""
    path = Path(run_or_file).expanduser()
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise UsageError(holds_no_weights(run_or_file))
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get("fastmim")
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
    if text is not None:
        return file, parse_metadata(text, str(file))
    beside = file.with_name(ORIGIN)
    if not beside.exists():
        raise UsageError(f"{file} does not name its model, and there is no {ORIGIN} next to it")
    try:
        return file, parse_metadata(read_text(beside, MOST_JSON), str(beside))
    except OSError as error:
        raise UsageError(f"{beside} cannot be read: {error.strerror}") from error


def read_encoder(run_or_file: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the weights of an encoder file.

    The names in the description are only read: `weights.rebuild` checks which of them may be built.

    Args:
        run_or_file: a run's folder, or the path of an encoder.safetensors.

    Raises:
        UsageError: the file does not exist, was not written by fastmim, or has weights that are not finite.
    """
    file, metadata = read_description(run_or_file)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
    check_finite(state, str(file))
    return metadata, state


def _unreadable(file: Path, error: Exception) -> UsageError:
    return UsageError(f"{file} is not a readable safetensors file: {error}")


def encoder_digest(encoder: str) -> str:
    """Return a digest of the file with the weights, or ``encoder`` itself if there is no file."""
    spec = parse_weights(encoder)
    file = spec.path / WEIGHTS if spec.path.is_dir() else spec.path
    if not spec.file or not file.is_file():
        return encoder
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def parse_metadata(text: str, where: str) -> dict[str, Any]:
    """Parse and check a description, JSON text from the file ``where``. Raises UsageError."""
    values: dict[str, Any] = parse_json(text, where)
    known = checked(_Metadata, values, where)
    for name in ("mean", "std"):
        count = len(getattr(known, name))
        if count != known.in_chans:
            raise UsageError(f"{where}: {name} has {count} numbers, but in_chans = {known.in_chans}")
    outputs = known.kwargs.get("num_classes")
    if known.classes is not None and outputs and outputs != len(known.classes):
        raise UsageError(f"{where}: classes has {len(known.classes)} names, num_classes = {shown(outputs)}")
    return values


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise UsageError if weights from the file ``where`` are not finite, or a variance is below 0.

    Scalars may be infinite: they are bounds, such as those of Gemma's clipped layers, not weights.
    """
    for name, value in state.items():
        if value.ndim == 0 and bool(torch.isinf(value)):
            continue
        if (value.is_floating_point() or value.is_complex()) and not _is_finite(value):
            raise UsageError(
                f"{where}: {name} has values that are not finite in float32: the training diverged, or the "
                "file is damaged"
            )
        if name.endswith("running_var") and value.is_floating_point() and bool((value < 0).any()):
            raise UsageError(f"{where}: {name} has variances below 0: the file is damaged")


def check_kinds(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """Raise UsageError if weights are floating point and the model's are not, or vice versa."""
    for name, value in state.items():
        if name in wanted and value.is_floating_point() != wanted[name].is_floating_point():
            raise UsageError(
                f"{where}: {name} is {_kind(value)}, but {_kind(wanted[name])} in the model: "
                "only floating-point weights can be loaded"
            )


def some_of(keys: Sequence[str]) -> str:
    """Format the first few keys of a file, which may contain any characters."""
    names = ", ".join(key if key.isprintable() else shown(key) for key in keys[:4])
    return names + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _is_finite(value: Tensor) -> bool:
    if value.is_floating_point() and value.element_size() in (1, 8):
        # torch has little arithmetic for 8 bits; values of 64 bits may be too large for the model.
        value = value.float()
    return bool(torch.isfinite(value).all())
