"""Checkpoint: a typed record of all that a resumed run needs, and the file that stores it.

The file is sealed with a checksum (see `seal`) and contains the version of its format. Older formats are
read; newer ones are rejected with a one-line error.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from fastmim.system.documents import Count, Finite
from fastmim.train.kernels import KernelChoices
from fastmim.train.seal import Damaged, check_sealed, write_sealed

VERSION: Literal[2] = 2
# Entries of an optimiser's parameter group that each run or step sets.
SET_BY_EACH_RUN = {"lr", "params", "fused", "foreach"}
DIGESTS = ("data_digest", "encoder_digest", "teacher_digest")  # top-level entries of the first version


@dataclass
class Progress:
    """Progress of a run; with weights and optimiser state, all that a resumed run needs."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    step: Count = 0
    lr_scale: Annotated[Finite, Field(gt=0, le=1)] = 1.0
    rollbacks: Count = 0
    seconds: Annotated[Finite, Field(ge=0)] = 0.0
    counters: Annotated[list[Finite], Field(min_length=5, max_length=5)] = field(
        default_factory=lambda: [0.0] * 5
    )


@dataclass(frozen=True)
class Choices:
    """How a run's steps are computed. A resumed run keeps the choices, so that its numbers stay the same."""

    precision: Literal["bf16-mixed", "32-true"]
    micro_batch: Annotated[int, Field(strict=True, ge=1)]
    kernels: KernelChoices | None = None
    """None: the run was started by a version without kernel choices."""


@dataclass
class OptimizerState:
    """State dictionary of AdamW."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    state: dict[int, dict[str, Tensor]]
    param_groups: list[dict[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """State of a run at the end of a step."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    module: dict[str, Any]
    """State dictionary of the module that is trained."""
    optimizer: OptimizerState
    progress: Progress
    stage: Count
    """Index of the stage, from 0."""
    metrics_bytes: Count
    """Length of metrics.jsonl: a resumed run cuts the file there and repeats the later steps."""
    choices: Choices
    identity: dict[str, str]
    """Digests of the data and of the initial weights."""
    world_size: Annotated[int, Field(strict=True, ge=1)]
    """Number of processes of the run."""
    fastmim_version: str = ""
    version: Literal[2] = VERSION


def write_checkpoint(checkpoint: Checkpoint, file: IO[bytes]) -> None:
    """Write a checkpoint to a file opened for writing, as tensors and plain values."""
    state = vars(checkpoint) | {
        "optimizer": vars(checkpoint.optimizer),
        "progress": asdict(checkpoint.progress),
        "choices": asdict(checkpoint.choices),
    }
    write_sealed(state, checkpoint.progress.step, file)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU. Only tensors and plain values are unpickled.

    Raises:
        Damaged: the file is damaged, or not a checkpoint of a run.
    """
    return checked(read_state(path))


def read_state(path: Path) -> dict[str, Any]:
    """Verify that a file is intact and load it to the CPU. Raises Damaged."""
    try:
        check_sealed(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Damaged:
        raise
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        raise Damaged("is missing" if gone else f"cannot be read ({error.strerror})") from error
    except Exception as error:  # any error of unpickling
        raise Damaged("is damaged (torch cannot read it)") from error
    return state


def checked(state: Any) -> Checkpoint:
    """Convert ``state`` to a checkpoint, without NaN in weights and running means. Raises Damaged."""
    if isinstance(state, Mapping):
        version = state.get("version", 1)
        if isinstance(version, int) and version > VERSION:
            raise Damaged(f"was written by a newer version of fastmim (format {version} above {VERSION})")
        if version == 1:
            state = _from_first_version(state)
    try:
        checkpoint = _FORM.validate_python(state)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"])) or "state"
        raise Damaged(f"is not a checkpoint of a run ({name}: {first['msg'].lower()})") from error
    for name, tensor in _tensors(checkpoint):
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise Damaged(f"contains NaN ({name})")
    return checkpoint


_FORM = TypeAdapter(Checkpoint)


def _from_first_version(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the format of versions up to 0.1: stages were called legs, digests were top-level entries."""
    known = {part.name for part in fields(Checkpoint)} - {"version", "identity", "stage"}
    converted = {name: state[name] for name in known & state.keys()}
    converted["identity"] = {name: state[name] for name in DIGESTS if name in state}
    if "leg" in state:
        converted["stage"] = state["leg"]
    if "data_digest" not in state:  # so that validation names the missing field
        del converted["identity"]
    return converted


def check_fits(checkpoint: Checkpoint, module: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Raise Damaged unless the weights match the module, and the optimiser state matches the optimiser.

    Args:
        module: state dictionary of the module that will load the weights.
    """
    _check_weights(checkpoint.module, module)
    _check_optimizer(checkpoint.optimizer, optimizer)


def _check_weights(saved: Mapping[str, Any], module: Mapping[str, Any]) -> None:
    for name, tensor in module.items():
        if name not in saved:
            raise Damaged(f"has no weights {name}, which the model has")
        if not isinstance(tensor, Tensor):  # a module's custom state
            continue
        if not isinstance(saved[name], Tensor) or _form(saved[name]) != _form(tensor):
            raise Damaged(f"has weights {name} of {_form(saved[name])}, not {_form(tensor)}")
    if surplus := saved.keys() - module.keys():
        raise Damaged(f"has weights {min(surplus)}, which the model does not have")


def _check_optimizer(saved: OptimizerState, optimizer: torch.optim.Optimizer) -> None:
    groups = saved.param_groups
    if len(groups) != len(optimizer.param_groups):
        raise Damaged(f"has an optimiser with {len(groups)} groups, not {len(optimizer.param_groups)}")
    for theirs, ours in zip(groups, optimizer.param_groups, strict=True):
        for key in sorted(ours.keys() & theirs.keys() - SET_BY_EACH_RUN):
            if _plain(theirs[key]) != _plain(ours[key]):
                raise Damaged(f"has an optimiser with another {key} than this run")
    indices = list(chain.from_iterable(group["params"] for group in groups))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if indices != list(range(len(parameters))):
        raise Damaged("has an optimiser with other parameters than this run")
    for index, means in saved.state.items():
        if index >= len(parameters) or not {"step", "exp_avg", "exp_avg_sq"} <= means.keys():
            raise Damaged("has an optimiser that is not AdamW")
        for key in ("exp_avg", "exp_avg_sq"):
            if means[key].shape != parameters[index].shape:
                raise Damaged(f"has an optimiser whose {key} of parameter {index} has another shape")


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, value) for name, value in checkpoint.module.items() if isinstance(value, Tensor))
    for index, means in checkpoint.optimizer.state.items():
        yield from ((f"{key} of parameter {index}", tensor) for key, tensor in means.items())


def _form(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    return f"{'x'.join(map(str, tensor.shape)) or 'a number'} of {str(tensor.dtype).removeprefix('torch.')}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
