"""Load weights with timm's keys: timm's own, or those in a file that does not name its model."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from fastmim.encoders.names import is_custom
from fastmim.encoders.registry import check_model_name, create, fit_kwargs, without_memory
from fastmim.encoders.resize import resize
from fastmim.errors import UsageError, first_line
from fastmim.system.size import Size
from fastmim.weights.encoder_file import check_finite, some_of
from fastmim.weights.loaded import Loaded, as_size
from fastmim.weights.rebuild import Changes, changed
from fastmim.weights.released import read_torch_file

DEFAULT_SIDE = 224  # pixels, if a model does not state its size


def timm_weights(
    name: str,
    model_kwargs: Mapping[str, Any],
    changes: Changes,
    image_size: int | Size | None,
    setting: str,
) -> Loaded:
    """Build a model with timm's weights.

    Args:
        setting: name of the field that asks for them, for messages.

    Raises:
        UsageError: timm has no weights for the model, or they cannot be downloaded.
    """
    if is_custom(name):
        raise UsageError(f"{setting} = timm:{name}: give a timm name, such as timm:vit_base_patch16_224")
    check_model_name(name)
    settings = timm.models.get_pretrained_cfg(name)
    if settings is None or not settings.has_weights:
        raise UsageError(f"{setting} = timm:{name}: timm has no weights for it; see `timm.list_pretrained()`")
    chans, *sides = settings.input_size
    old = (sides[0], sides[1])
    kwargs = fit_kwargs(name, changed(changes, name, model_kwargs), old, chans)
    try:
        model = timm.create_model(name, pretrained=True, **kwargs)
    except Exception as error:  # from the network, the cache or the hub's client
        raise UsageError(
            f"{setting} = timm:{name}: its weights cannot be downloaded: {first_line(error)}"
        ) from error
    metadata = {
        "model": name,
        "kwargs": kwargs,
        "image_size": list(old),
        "in_chans": chans,
        "mean": list(settings.mean),
        "std": list(settings.std),
        "method": "timm",
    }
    size = as_size(image_size) if image_size is not None else old
    model, kwargs = resize(model, name, kwargs, old, size)
    return Loaded(model, name, kwargs, metadata, size, [], [])


def read_timm_file(
    file: Path, model: str, model_kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a .safetensors file, or one written by torch.save, as `read_encoder` does, without a classifier.

    Args:
        model: timm name; a tag (``vit_base_patch16_224.augreg_in1k``) also determines mean and std.
        model_kwargs: further arguments of the model; ``img_size`` if it is not timm's default.

    Raises:
        UsageError: the file cannot be read, or does not match the model.
    """
    check_model_name(model)
    state = _read(file)
    check_finite(state, str(file))
    given = dict(model_kwargs) if is_custom(model) else {**model_kwargs, "num_classes": 0}
    shape = without_memory(partial(create, model, given))
    settings = getattr(shape, "pretrained_cfg", None) or {}
    size = own_size(shape, given)
    chans = int(model_kwargs.get("in_chans", 3))
    kwargs = fit_kwargs(model, given, size, chans)
    wanted = without_memory(partial(create, model, kwargs)).state_dict()
    extra = {key for key in state if key not in wanted} - _classifier(model, kwargs)
    for complaint, keys in (
        ("it has no", [key for key in wanted if key not in state]),
        ("the model has no", sorted(extra)),
        (
            "of another shape:",
            [key for key in wanted if key in state and state[key].shape != wanted[key].shape],
        ),
    ):
        if keys:
            raise UsageError(
                f"{file} does not fit {model} with {kwargs}: {complaint} {some_of(keys)}; give in "
                "model_kwargs what differs from timm's defaults, such as img_size or global_pool"
            )
    metadata = {
        "model": model,
        "kwargs": kwargs,
        "image_size": list(size),
        "in_chans": chans,
        "mean": list(settings.get("mean", IMAGENET_DEFAULT_MEAN)),
        "std": list(settings.get("std", IMAGENET_DEFAULT_STD)),
        "method": "file",
    }
    return metadata, {key: state[key] for key in wanted}


def own_size(model: nn.Module, kwargs: Mapping[str, Any]) -> Size:
    """Return the default image size (H, W) of a model."""
    settings = getattr(model, "pretrained_cfg", None) or {}
    return as_size(kwargs.get("img_size") or settings.get("input_size", (3, DEFAULT_SIDE, DEFAULT_SIDE))[1:])


def _classifier(model: str, kwargs: dict[str, Any]) -> set[str]:
    """Return the keys that the model has only with a classifier."""
    if is_custom(model):
        return set()
    with_classes = without_memory(partial(create, model, {**kwargs, "num_classes": 2}))
    without = without_memory(partial(create, model, kwargs))
    return set(with_classes.state_dict()) - set(without.state_dict())


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}") from error
