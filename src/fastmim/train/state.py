"""What a checkpoint must hold: checked before a run takes it over, so that a foreign one costs one line."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fastmim.train.kernels import Attention, Compile, MemoryFormat, OptimizerKernel
from fastmim.train.seal import Damaged
from fastmim.train.stages import TrainingPlan

Count = Annotated[int, Field(ge=0, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
# Of an optimiser's group: what each run or step sets itself.
CHOSEN_ANEW = {"lr", "params", "fused", "foreach"}


class _Kernels(BaseModel):
    model_config = ConfigDict(extra="forbid")

    attention: Attention
    memory_format: MemoryFormat
    compile: Compile
    optimizer: OptimizerKernel
    threads: Count = 0


class _Choices(BaseModel):
    precision: Literal["bf16-mixed", "32-true"]
    micro_batch: Annotated[Count, Field(ge=1)]
    kernels: _Kernels | None = None


class _Progress(BaseModel):
    model_config = ConfigDict(extra="forbid")

    step: Count
    lr_scale: Annotated[Finite, Field(gt=0, le=1)]
    rollbacks: Count
    seconds: Annotated[Finite, Field(ge=0)]
    counters: Annotated[list[Finite], Field(min_length=5, max_length=5)]


class _Group(BaseModel):
    params: list[Count]


class _Optimizer(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    state: dict[int, dict[str, Tensor]]
    param_groups: list[_Group]


class _State(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    module: dict[str, Any]
    optimizer: _Optimizer
    progress: _Progress
    stage: Count
    metrics_bytes: Count
    choices: _Choices
    data_digest: str
    world_size: Annotated[Count, Field(ge=1)]


def check_state(state: Any) -> None:
    """Raise Damaged unless ``state`` has the form of a run's, all weights and running means numbers."""
    try:
        _State.model_validate(state)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"])) or "state"
        raise Damaged(f"is not of a run ({name}: {first['msg'].lower()})") from error
    for name, tensor in _tensors(state):
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise Damaged(f"holds values that are not numbers ({name})")


def check_place(state: Mapping[str, Any], plan: TrainingPlan) -> None:
    """Raise Damaged unless the run's plan has the place at which ``state`` stands."""
    stage, step = state["leg"], state["progress"]["step"]
    if stage >= len(plan.stages):
        raise Damaged(f"stands in stage {stage + 1}, but the run has {len(plan.stages)}")
    stage = plan.stages[stage]
    if not stage.first_step <= step <= stage.last_step:
        raise Damaged(
            f"stands at step {step} in stage {stage + 1}, which has steps {stage.first_step} to {stage.last_step}"
        )


def check_fits(state: Mapping[str, Any], module: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Raise Damaged unless the weights in ``state`` are of the module's form, and the optimiser's of theirs.

    Args:
        module: the state dict of the module that is to take the weights.
    """
    saved: Mapping[str, Any] = state["module"]
    for name, tensor in module.items():
        if name not in saved:
            raise Damaged(f"has no weights {name}, which the model has")
        if not isinstance(tensor, Tensor):  # some module's own kind of state
            continue
        if not isinstance(saved[name], Tensor) or _form(saved[name]) != _form(tensor):
            raise Damaged(f"has weights {name} of {_form(saved[name])}, not {_form(tensor)}")
    if surplus := saved.keys() - module.keys():
        raise Damaged(f"has weights {min(surplus)}, which the model has not")
    groups = state["optimizer"]["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        raise Damaged(f"has an optimiser with {len(groups)} groups, not {len(optimizer.param_groups)}")
    for theirs, ours in zip(groups, optimizer.param_groups, strict=True):
        for key in sorted(ours.keys() & theirs.keys() - CHOSEN_ANEW):
            if _plain(theirs[key]) != _plain(ours[key]):
                raise Damaged(f"has an optimiser with another {key} than this run")
    indices = list(chain.from_iterable(group["params"] for group in groups))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if indices != list(range(len(parameters))):
        raise Damaged("has an optimiser with other parameters than this run")
    for index, means in state["optimizer"]["state"].items():
        if index >= len(parameters) or not {"step", "exp_avg", "exp_avg_sq"} <= means.keys():
            raise Damaged("has an optimiser that is not AdamW")
        for key in ("exp_avg", "exp_avg_sq"):
            if means[key].shape != parameters[index].shape:
                raise Damaged(f"has an optimiser whose {key} of parameter {index} has another shape")


def _tensors(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, value) for name, value in state["module"].items() if isinstance(value, Tensor))
    for index, means in state["optimizer"]["state"].items():
        yield from ((f"{key} of parameter {index}", tensor) for key, tensor in means.items())


def _form(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    return f"{'x'.join(map(str, tensor.shape)) or 'a number'} of {str(tensor.dtype).removeprefix('torch.')}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
