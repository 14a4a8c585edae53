"""A loaded backbone, and replacing its classifier."""

from typing import Any, NamedTuple

from torch import nn

from fastmim.errors import UsageError
from fastmim.system.size import Size


class Loaded(NamedTuple):
    """A backbone with the weights of one source."""

    model: nn.Module
    name: str
    kwargs: dict[str, Any]
    """Arguments that rebuild the model (`encoders.registry.create`), without a classifier added later."""
    metadata: dict[str, Any]
    """Description in encoder.json, or its equivalent; mean and std are None for newly initialised weights."""
    size: Size
    """(H, W) in pixels."""
    missing_keys: list[str]
    """Keys of the model that the source does not have; they are newly initialised."""
    unexpected_keys: list[str]
    """Keys of the source that the model does not have, because its pooling differs."""


def replace_classifier(loaded: Loaded, num_classes: int) -> list[str]:
    """Replace a model's classifier and return the keys of the new one.

    Raises:
        UsageError: the classifier of the model cannot be replaced.
    """
    model = loaded.model
    if not hasattr(model, "reset_classifier"):
        raise UsageError(
            f"num_classes = {num_classes}: {loaded.name} has no reset_classifier; add a classifier"
        )
    known = {name: value.data_ptr() for name, value in model.state_dict().items()}
    model.reset_classifier(num_classes)  # type: ignore[operator]
    return [name for name, value in model.state_dict().items() if known.get(name) != value.data_ptr()]


def as_size(size: Any) -> Size:
    """Return (H, W), given a side or both numbers."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
