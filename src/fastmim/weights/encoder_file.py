"""encoder.safetensors: weights, how the model is rebuilt, and what its input looks like."""

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
from fastmim.weights.spec import parse_weights

WEIGHTS = "encoder.safetensors"
ORIGIN = "encoder.json"

MOST_SIDE = 1 << 12  # pixels
MOST_CHANNELS = 1 << 12
MOST_LETTERS = 256

MOST_STATISTIC = (
    1e6  # of mean and std, and one in so many the least of std: images would be infinite, or flat
)

Side = Annotated[Whole, Field(ge=1, le=MOST_SIDE)]
Mean = Annotated[Finite, Field(ge=-MOST_STATISTIC, le=MOST_STATISTIC)]
Deviation = Annotated[Finite, Field(ge=1 / MOST_STATISTIC, le=MOST_STATISTIC)]
Word = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)]


@dataclass(frozen=True)
class _Metadata:
    """What every description must hold; there may be more."""

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
    """What encoder.json holds: how the model is rebuilt, and what its input must look like.

    ``kwargs`` build the model that the weights fit strictly; where blocks were left out (encoder.depth),
    ``full_kwargs`` build the one that has them.
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


def save_encoder(run: Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """Write encoder.safetensors (timm's own keys; the description rides along) and encoder.json."""
    state = {}
    written = set()
    for name, value in model.state_dict().items():
        shared = value.data_ptr() in written  # safetensors takes no tensor under two names
        written.add(value.data_ptr())
        state[name] = (
            value.detach().cpu().contiguous().clone() if shared else value.detach().cpu().contiguous()
        )
    text = json.dumps(metadata, indent=2)
    weights = safetensors.torch.save(state, metadata={"fastmim": text})
    write_atomically(run / WEIGHTS, lambda file: file.write(weights))
    write_atomically(run / ORIGIN, lambda file: file.write(text.encode() + b"\n"))


def read_description(run_or_file: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file of an exported encoder, and what it says of itself; arguments and errors of `read_encoder`."""
    path = Path(run_or_file).expanduser()
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{run_or_file} holds no {WEIGHTS}; give a finished run's folder or that file")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get("fastmim")
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
    if text is not None:
        return file, parse_metadata(text, str(file))
    beside = file.with_name(ORIGIN)
    if not beside.exists():
        raise UsageError(f"{file} does not say which model it is, and no {ORIGIN} lies beside it")
    try:
        return file, parse_metadata(read_text(beside, MOST_JSON), str(beside))
    except OSError as error:
        raise UsageError(f"{beside} cannot be read: {error.strerror}") from error


def read_encoder(run_or_file: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the weights of an exported encoder.

    The names in it are only read: `weights.rebuild` says which of them may be built.

    Args:
        run_or_file: a run directory, or an encoder.safetensors anywhere.

    Raises:
        UsageError: there is none, it was not written by fastmim, or its weights are not finite.
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
    """Digest the bytes of the file that holds the weights; of other weights, return the text itself."""
    spec = parse_weights(encoder)
    file = spec.path / WEIGHTS if spec.path.is_dir() else spec.path
    if not spec.file or not file.is_file():
        return encoder
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def parse_metadata(text: str, where: str) -> dict[str, Any]:
    """The description that ``text``, JSON out of the file ``where``, holds. Raises UsageError."""
    values: dict[str, Any] = parse_json(text, where)
    known = checked(_Metadata, values, where)
    for name in ("mean", "std"):
        count = len(getattr(known, name))
        if count != known.in_chans:
            raise UsageError(f"{where}: {name} has {count} numbers, but in_chans = {known.in_chans}")
    outputs = known.kwargs.get("num_classes")
    if known.classes is not None and outputs and outputs != len(known.classes):
        raise UsageError(
            f"{where}: it names {len(known.classes)} classes, but num_classes = {shown(outputs)}"
        )
    return values


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise UsageError where weights out of the file ``where`` are not finite, or variances below 0.

    A single number may be infinite: it is a bound, as of Gemma's clipped layers, and no weight.
    """
    for name, value in state.items():
        if value.ndim == 0 and bool(torch.isinf(value)):
            continue
        if (value.is_floating_point() or value.is_complex()) and not _is_finite(value):
            raise UsageError(
                f"{where}: {name} holds numbers that are not finite in float32: these are weights of a "
                "training that diverged, or they are damaged"
            )
        if name.endswith("running_var") and value.is_floating_point() and bool((value < 0).any()):
            raise UsageError(f"{where}: {name} holds variances below 0: it is damaged")


def check_kinds(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """Raise UsageError where weights are whole numbers, truth values or complex and the model's are not."""
    for name, value in state.items():
        if name in wanted and value.is_floating_point() != wanted[name].is_floating_point():
            raise UsageError(
                f"{where}: {name} holds {_kind(value)} numbers, where the model has {_kind(wanted[name])}: "
                "only weights in floating point are read"
            )


def some_of(keys: Sequence[str]) -> str:
    """The first few of names that a file may have made up."""
    names = ", ".join(key if key.isprintable() else shown(key) for key in keys[:4])
    return names + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _is_finite(value: Tensor) -> bool:
    if value.is_floating_point() and value.element_size() in (1, 8):
        # Of 8 bits, for which torch has little arithmetic; of 64, which may be too large for the model.
        value = value.float()
    return bool(torch.isfinite(value).all())
