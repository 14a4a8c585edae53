"""Start pre-training from existing weights: of a run, of timm, or of a file."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastmim.config import PretrainConfig
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.names import is_custom
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.weights.encoder_file import some_of
from fastmim.weights.load import factory_of, load
from fastmim.weights.loaded import Loaded
from fastmim.weights.spec import parse_weights

DEFAULT_MODEL = PretrainConfig.model


def with_factory_of_weights(config: PretrainConfig, trust: Trust) -> PretrainConfig:
    """Set ``model`` to the factory that the file with the weights names, if any.

    Raises:
        UsageError: the factory is not trusted, or the file cannot be read.
    """
    spec = parse_weights(config.weights)
    if not spec.has_weights or spec.kind != "file" or (spec.path.is_file() and spec.path.suffix == ".pth"):
        return config
    name = factory_of(config.weights) if spec.names_its_model or spec.path.suffix == ".safetensors" else None
    if name is None:
        return config
    trust.check(name, config.weights)
    return replace(config, model=name)


def load_weights(config: PretrainConfig) -> Loaded | None:
    """Build the backbone with the weights that ``config`` names, at the size of the first stage.

    Returns:
        The backbone; None if the weights are new.

    Raises:
        UsageError: the weights cannot be loaded, or contradict the settings.
    """
    spec = parse_weights(config.weights)
    if not spec.has_weights:
        return None
    model: str | None = None
    kwargs: dict[str, Any] = {}
    if spec.kind != "timm" and (not spec.names_its_model or is_custom(config.model)):
        model, kwargs = config.model, config.model_kwargs
    elif spec.kind == "timm":
        kwargs = config.model_kwargs
    loaded = load(spec, config.size, model, kwargs, config.in_chans, setting="weights")
    if config.model not in (DEFAULT_MODEL, loaded.name):
        raise UsageError(
            f"model = {config.model}: weights = {config.weights} are those of {loaded.name}; leave it out"
        )
    differing = {name for name, value in config.model_kwargs.items() if loaded.kwargs.get(name) != value}
    if differing - {"img_size"} and spec.names_its_model and spec.kind != "timm":
        name = min(differing)
        raise UsageError(
            f"model_kwargs: {name} = {config.model_kwargs[name]!r}: weights = {config.weights} have "
            f"{loaded.kwargs.get(name)!r}; leave it out"
        )
    return loaded


def settings_of_weights(config: PretrainConfig, loaded: Loaded) -> PretrainConfig:
    """Return ``config`` with the backbone of the weights, and their mean and std if none are given.

    The position embedding of the weights is kept and trained.
    """
    crop, metadata = config.crop, loaded.metadata
    if crop.mean is None and metadata["mean"] is not None and metadata["in_chans"] == config.in_chans:
        crop = replace(crop, mean=tuple(metadata["mean"]), std=tuple(metadata["std"]))
    kwargs = {name: value for name, value in loaded.kwargs.items() if name not in ("in_chans", "num_classes")}
    encoder = replace(config.encoder, pos_embed="learned")  # that of the weights
    return replace(config, model=loaded.name, model_kwargs=kwargs, crop=crop, encoder=encoder)


def take_weights(encoder: Encoder, loaded: Loaded, source: str) -> None:
    """Copy the weights of ``loaded`` into a newly built encoder of the same backbone.

    The weights of a classifier, which the encoder does not have, are left out.

    Args:
        source: where the weights come from, for messages.

    Raises:
        UsageError: a parameter of the encoder has no weights.
    """
    state, wanted = _adapted(loaded, encoder), encoder.model.state_dict()
    missing = sorted({key for key in wanted if key not in state} | set(loaded.missing_keys) & wanted.keys())
    if missing:
        raise UsageError(f"weights = {source}: they do not hold {some_of(missing)} of {loaded.name}")
    encoder.model.load_state_dict({key: state[key] for key in wanted})


def _adapted(loaded: Loaded, encoder: Encoder) -> dict[str, Tensor]:
    """Return the weights for the channels of the encoder.

    The first layer is adapted as timm does: its weights are repeated over the channels, or summed for one.
    """
    state = dict(loaded.model.state_dict())
    trained_on = loaded.metadata["in_chans"]
    if trained_on == encoder.in_chans:
        return state
    from timm.models import adapt_input_conv

    for key, value in encoder.model.state_dict().items():
        if key in state and state[key].shape != value.shape and state[key].ndim == value.ndim == 4:
            with torch.no_grad():
                state[key] = adapt_input_conv(encoder.in_chans, state[key])
    return state
