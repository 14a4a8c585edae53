"""A backbone with its weights, and the classifier that stands on it."""

from typing import Any, NamedTuple

from torch import nn

from fastmim.errors import UsageError
from fastmim.system.size import Size


class Loaded(NamedTuple):
    """A backbone with the weights of one source."""

    model: nn.Module
    name: str
    kwargs: dict[str, Any]
    """The arguments that rebuild it, see `encoders.registry.create`, without a classifier put on it since."""
    metadata: dict[str, Any]
    """The description in encoder.json, or the same of another source; new weights have no mean and std."""
    size: Size
    """(H, W) in pixels."""
    missing_keys: list[str]
    """Keys of the model that the source does not have: they are newly initialised."""
    unexpected_keys: list[str]
    """Keys of the source that the model does not have, as it pools otherwise."""


def replace_classifier(loaded: Loaded, num_classes: int) -> list[str]:
    """Put a new classifier on a model; returns its keys. Raises UsageError where it takes none."""
    model = loaded.model
    if not hasattr(model, "reset_classifier"):
        raise UsageError(
            f"num_classes = {num_classes}: {loaded.name} has no reset_classifier; add a classifier"
        )
    known = {name: value.data_ptr() for name, value in model.state_dict().items()}
    model.reset_classifier(num_classes)  # type: ignore[operator]
    return [name for name, value in model.state_dict().items() if known.get(name) != value.data_ptr()]


def as_size(size: Any) -> Size:
    """(H, W) of a side, or of two numbers."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
