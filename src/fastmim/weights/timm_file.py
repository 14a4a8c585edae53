"""A file of weights under timm's keys that does not say which model it is of."""

from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fastmim.data.settings import IMAGENET_MEAN, IMAGENET_STD
from fastmim.encoders.names import is_custom
from fastmim.encoders.registry import check_model_name, create, fit_kwargs, without_memory
from fastmim.errors import UsageError
from fastmim.weights.encoder_file import check_finite, check_kinds, some_of
from fastmim.weights.load import Loaded, as_size
from fastmim.weights.released import read_torch_file

DEFAULT_SIDE = 224  # pixels, where a model does not tell its own


def timm_file(file: str | Path, model: str, model_kwargs: dict[str, Any]) -> Loaded:
    """The backbone without its classifier, with the weights of a .safetensors or of what torch.save wrote.

    Args:
        model: timm's name; with its tag (``vit_base_patch16_224.augreg_in1k``) it tells mean and std, too.
        model_kwargs: what else builds the model that the file is of; ``img_size`` where it is not timm's.

    Raises:
        UsageError: the file cannot be read or does not fit the model.
    """
    check_model_name(model)
    state = _read(Path(file).expanduser())
    check_finite(state, str(file))
    kwargs = model_kwargs if is_custom(model) else {**model_kwargs, "num_classes": 0}
    shape = without_memory(partial(create, model, kwargs))
    settings = getattr(shape, "pretrained_cfg", None) or {}
    size = as_size(
        model_kwargs.get("img_size") or settings.get("input_size", (0, DEFAULT_SIDE, DEFAULT_SIDE))[1:]
    )
    chans = int(model_kwargs.get("in_chans", 3))
    kwargs = fit_kwargs(model, kwargs, size, chans)
    module = create(model, kwargs)
    wanted = module.state_dict()
    extra = {key for key in state if key not in wanted} - _classifier(model, kwargs)
    missing = [key for key in wanted if key not in state]
    other = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    for complaint, keys in (
        ("it has no", missing),
        ("the model has no", sorted(extra)),
        ("of another shape:", other),
    ):
        if keys:
            raise UsageError(
                f"{file} does not fit {model} with {kwargs}: {complaint} {some_of(keys)}; model_kwargs say "
                "what differs from timm's, as img_size or global_pool"
            )
    check_kinds(state, wanted, str(file))
    module.load_state_dict({key: state[key] for key in wanted})
    origin = {
        "model": model,
        "kwargs": kwargs,
        "image_size": list(size),
        "in_chans": chans,
        "mean": list(settings.get("mean", IMAGENET_MEAN)),
        "std": list(settings.get("std", IMAGENET_STD)),
        "method": "file",
    }
    return Loaded(module, model, kwargs, origin, size, [], [])


def _classifier(model: str, kwargs: dict[str, Any]) -> set[str]:
    """Keys that the model has with classes only."""
    if is_custom(model):
        return set()
    with_classes = without_memory(partial(create, model, {**kwargs, "num_classes": 2}))
    without = without_memory(partial(create, model, kwargs))
    return set(with_classes.state_dict()) - set(without.state_dict())


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    if not path.is_file():
        raise UsageError(f"{path} is no file")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}") from error
