"""Rebuild a model from its description, and load its weights."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastmim.encoders.build import name_of
from fastmim.encoders.described import check_described, most_parameters
from fastmim.encoders.limits import limited
from fastmim.encoders.names import is_custom
from fastmim.encoders.registry import create, is_known
from fastmim.encoders.resize import resize
from fastmim.encoders.trust import NOTHING, Trust
from fastmim.errors import UsageError
from fastmim.system.size import Size
from fastmim.weights.encoder_file import check_kinds, some_of
from fastmim.weights.loaded import Loaded, as_size

Changes = Mapping[str, Any] | Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""Arguments that replace those of the description, or a function that maps name and arguments to them."""


def changed(changes: Changes, name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``kwargs`` with the changes."""
    return {**kwargs, **(changes(name, kwargs) if callable(changes) else changes)}


def rebuild(
    metadata: dict[str, Any],
    state: dict[str, Tensor],
    where: str,
    changes: Changes,
    image_size: int | Size | None = None,
    model: nn.Module | None = None,
    trust: Trust = NOTHING,
    setting: str = "model",
    from_file: bool = True,
) -> Loaded:
    """Build the model that ``metadata`` describes, with ``changes`` to its arguments, and load ``state``.

    Args:
        where: path of the file, for messages.
        image_size: pixels; default: that of the weights.
        model: a module to use instead of building the one described.
        trust: factories named by the file that may be imported.
        setting: the field in which the user can name a factory, for messages.
        from_file: whether the description was read from the file; if so, the model is checked before it is
            built.

    Raises:
        UsageError: the model may not be built, or the weights or the size do not match it.
    """
    name, described = metadata["model"], metadata.get("full_kwargs") or metadata["kwargs"]
    ours = model is not None and not (is_known(name) or trust.allows(name))  # not built from its description
    if from_file and not ours and callable(changes):
        check_encoder(metadata, state, where, trust, setting)  # before a function builds it
    kwargs = changed({} if callable(changes) and model is not None else changes, name, described)
    pools_otherwise = kwargs.get("global_pool") != described.get("global_pool")
    shape = None
    if model is not None and ours:
        name, kwargs = name_of(model), {}
    elif from_file:
        shape = check_encoder(metadata, state, where, trust, setting, kwargs)
    fit = partial(_fit, state, where, name, bool(metadata.get("full_kwargs")), pools_otherwise)
    if model is None:
        if shape is not None:
            fit(shape.state_dict())  # before memory is allocated
        with limited(most_parameters(count(state))):
            model = create(name, kwargs)
    missing, unexpected = fit(model.state_dict())
    known = {key: value for key, value in state.items() if key not in unexpected}
    try:
        model.load_state_dict({**model.state_dict(), **known}, strict=True)
    except RuntimeError as error:
        raise UsageError(f"{where} does not fit {name}: {' '.join(str(error).split())}") from error
    trained_at = as_size(metadata["image_size"])
    size = as_size(image_size) if image_size is not None else trained_at
    model, kwargs = resize(model, name, kwargs, trained_at, size)
    _note_input(model, metadata, size)
    return Loaded(model, name, kwargs, metadata, size, missing, unexpected)


def check_encoder(
    metadata: dict[str, Any],
    state: dict[str, Tensor],
    where: str,
    trust: Trust = NOTHING,
    setting: str = "model",
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module | None:
    """Build the model that a file describes, or the same with other ``kwargs``, on the meta device.

    See `encoders.described.check_described`.
    """
    name = metadata["model"]
    if trust.names and name not in trust.names and not is_custom(name):
        raise UsageError(f"{setting} = {next(iter(trust.names))}: {where} holds {name}; leave {setting} out")
    if kwargs is None:
        kwargs = metadata.get("full_kwargs") or metadata["kwargs"]
    return check_described(name, kwargs, count(state), where, trust, setting)


def count(state: Mapping[str, Tensor]) -> int:
    """Return the number of elements of all weights."""
    return sum(value.numel() for value in state.values())


def _fit(
    state: Mapping[str, Tensor],
    where: str,
    name: str,
    blocks_left_out: bool,
    pools_otherwise: bool,
    wanted: Mapping[str, Tensor],
) -> tuple[list[str], list[str]]:
    """Return the missing and unexpected keys of ``state``, for a model whose own state is ``wanted``.

    Raises:
        UsageError: keys are missing or unexpected, or tensors differ in shape or kind of number.
    """
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(wanted))
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and not is_lazy(value) and state[key].shape != value.shape
    ]
    for complaint, keys in (
        ("it has no", [] if blocks_left_out or pools_otherwise else missing),
        ("the model has no", [] if pools_otherwise else unexpected),
        ("of another shape:", other),
    ):
        if keys:
            raise UsageError(f"{where} does not fit {name}: {complaint} {some_of(keys)}")
    check_kinds(state, wanted, where)
    return missing, unexpected


def _note_input(model: nn.Module, metadata: dict[str, Any], size: Size) -> None:
    """Set the model's size, mean and std, so that ``timm.data.resolve_model_data_config`` returns them."""
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    config |= {
        "input_size": (metadata["in_chans"], *size),
        "mean": tuple(metadata["mean"]),
        "std": tuple(metadata["std"]),
    }
    model.pretrained_cfg = config  # type: ignore[assignment]
    model.default_cfg = config  # type: ignore[assignment]
