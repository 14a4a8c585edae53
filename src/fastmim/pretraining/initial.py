"""Start pre-training from existing weights: of a run, of timm, or of a file."""

from dataclasses import replace
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor

from fastmim.config import PretrainConfig
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.names import is_custom
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.methods.registry import METHODS
from fastmim.recipes.methods import defaults_of
from fastmim.weights.encoder_file import read_description, some_of
from fastmim.weights.load import RGB, load
from fastmim.weights.loaded import Loaded
from fastmim.weights.spec import WeightsSpec, parse_weights

# Arguments that do not belong to the weights: pre-training sets them itself.
NOT_THE_WEIGHTS = ("img_size", "in_chans", "num_classes", "drop_path_rate")


def load_weights(config: PretrainConfig, trust: Trust) -> Loaded | None:
    """Build the backbone with the weights that ``config`` names, at the size of the first stage.

    Returns:
        The backbone; None if the weights are new.

    Raises:
        UsageError: the weights cannot be loaded, or contradict the settings.
    """
    spec = parse_weights(config.weights)
    if not spec.has_weights:
        return None
    size = METHODS[config.method].encoder_size(config.size)
    described = _description(spec)
    if described is not None:
        name = described["model"]
        if is_custom(name):
            trust.check(name, config.weights)
        loaded = load(spec, size, name if is_custom(name) else None, setting="weights")
    elif spec.kind == "timm":
        loaded = load(spec, size, None, _backbone_only(config.model_kwargs), setting="weights")
    else:
        loaded = _load_undescribed(config, spec)
    _check(config, loaded, named=described is not None or spec.kind == "timm")
    return loaded


def _description(spec: WeightsSpec) -> dict[str, Any] | None:
    """Return the description in a file of weights; None for a file without one."""
    if spec.kind != "file":
        return None
    try:
        return read_description(spec.file)[1]
    except UsageError:
        if spec.path.is_dir():
            raise
        return None


def _load_undescribed(config: PretrainConfig, spec: WeightsSpec) -> Loaded:
    """Load a file that does not name its model.

    ``model_kwargs`` may be those of the file, or those of a run that began with it, which has another image
    size and perhaps other channels.
    """
    size = METHODS[config.method].encoder_size(config.size)
    first: UsageError | None = None
    for kwargs in (config.model_kwargs, _backbone_only(config.model_kwargs)):
        for channels in dict.fromkeys((config.in_chans, RGB)):
            try:
                return load(spec, size, config.model, kwargs, channels, setting="weights")
            except UsageError as error:
                first = first or error
    assert first is not None
    raise first


def _backbone_only(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in NOT_THE_WEIGHTS}


def _check(config: PretrainConfig, loaded: Loaded, named: bool) -> None:
    """Raise UsageError if the settings contradict the weights.

    Args:
        named: whether the weights name their model.
    """
    source, channels = config.weights, loaded.metadata["in_chans"]
    if channels not in (config.in_chans, RGB):
        raise UsageError(
            f"in_chans = {config.in_chans}: weights = {source} were trained on {channels} channels; give "
            f"--in-chans {channels}"
        )
    if not named:
        return
    if config.model not in (defaults_of(config.method).model, PretrainConfig.model, loaded.name):
        raise UsageError(
            f"model = {config.model}: weights = {source} are those of {loaded.name}; leave model out"
        )
    for name, value in _backbone_only(config.model_kwargs).items():
        if loaded.kwargs.get(name, value) != value:
            raise UsageError(
                f"model_kwargs: {name} = {value!r}: weights = {source} have {loaded.kwargs[name]!r}; leave "
                "it out"
            )


def settings_of_weights(config: PretrainConfig, loaded: Loaded) -> PretrainConfig:
    """Return ``config`` with the backbone of the weights, and their mean and std if none are given.

    The position embedding of the weights is kept and trained.
    """
    crop, metadata = config.crop, loaded.metadata
    if crop.mean is None and metadata["mean"] is not None and metadata["in_chans"] == config.in_chans:
        crop = replace(crop, mean=tuple(metadata["mean"]), std=tuple(metadata["std"]))
    kwargs = _backbone_only(loaded.kwargs)
    if "drop_path_rate" in config.model_kwargs:
        kwargs["drop_path_rate"] = config.model_kwargs["drop_path_rate"]
    encoder = replace(config.encoder, pos_embed="learned")
    return replace(config, model=loaded.name, model_kwargs=kwargs, crop=crop, encoder=encoder)


def take_weights(encoder: Encoder, loaded: Loaded, source: str) -> None:
    """Copy the weights of ``loaded`` into a newly built encoder of the same backbone.

    The weights of a classifier, which the encoder does not have, are left out.

    Args:
        source: where the weights come from, for messages.

    Raises:
        UsageError: a parameter of the encoder has no weights, or weights of another shape.
    """
    state, wanted = _adapted(loaded, encoder), encoder.model.state_dict()
    missing = sorted({key for key in wanted if key not in state} | set(loaded.missing_keys) & wanted.keys())
    if missing:
        raise UsageError(f"weights = {source}: they do not hold {some_of(missing)} of {loaded.name}")
    other = [key for key in wanted if state[key].shape != wanted[key].shape]
    if other:
        raise UsageError(f"weights = {source}: of another shape than in {loaded.name}: {some_of(other)}")
    encoder.model.load_state_dict({key: state[key] for key in wanted})


def _adapted(loaded: Loaded, encoder: Encoder) -> dict[str, Tensor]:
    """Return the weights for the channels of the encoder.

    The first layer is adapted as timm does: its weights are repeated over the channels, or summed for one.
    """
    state = dict(loaded.model.state_dict())
    if loaded.metadata["in_chans"] == encoder.in_chans:
        return state
    for key, value in encoder.model.state_dict().items():
        if key in state and state[key].shape != value.shape and state[key].ndim == value.ndim == 4:
            with torch.no_grad():
                state[key] = adapt_input_conv(encoder.in_chans, state[key])
    return state
