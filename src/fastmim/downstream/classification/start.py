"""Build the classifier that fine-tuning starts from: a file, timm's weights, or random ones."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from fastmim.config import FinetuneConfig
from fastmim.config.finetune import SCRATCH, WITH_TIMM_WEIGHTS
from fastmim.downstream.classification.model import PooledClassifier
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.build import build_encoder, name_of
from fastmim.encoders.registry import arguments_of, check_model_name, create, weights_tag, without_memory
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.weights.encoder_file import read_encoder
from fastmim.weights.load import Loaded, as_size, check_encoder, load_with, replace_classifier, timm_weights


@dataclass(frozen=True)
class InitialModel:
    """What fine-tuning starts from."""

    model: nn.Module
    """Images (B, C, H, W) -> logits (B, classes)."""
    name: str
    kwargs: dict[str, Any]
    """What rebuilds the model, with its classifier."""
    origin: dict[str, Any]
    """Where the weights come from."""
    in_chans: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    """Of the images that the weights know; None: nothing is known yet."""
    notes: list[str] = field(default_factory=list)
    """What a person should know about it."""


RGB = 3  # channels, unless they are told


def build_classifier(config: FinetuneConfig, classes: int, module: nn.Module | None = None) -> InitialModel:
    """The classifier that ``config`` asks for, at its image size; new weights are torch's next random ones.

    Args:
        module: of one's own: what config.model names, or what the encoder's file was pre-trained as.

    Raises:
        UsageError: there are no such weights, or the model does not take them or the size.
    """
    if config.encoder == SCRATCH:
        start = _from_scratch(config, classes, module)
    elif config.encoder.startswith(WITH_TIMM_WEIGHTS):
        start = _from_timm(config, classes)
    else:
        start = _from_file(config, classes, module)
    head = start.model.get_classifier()  # type: ignore[operator]
    if isinstance(head, nn.Linear) and config.known_head_std:
        nn.init.trunc_normal_(head.weight, std=config.known_head_std)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    start.model.requires_grad_(True)
    return start


def _from_file(config: FinetuneConfig, classes: int, module: nn.Module | None) -> InitialModel:
    origin, state = read_encoder(config.encoder)
    if config.in_chans not in (RGB, origin["in_chans"]):
        raise UsageError(f"in_chans = {config.in_chans}: the encoder was trained on {origin['in_chans']}")
    trust = Trust.of(config.model)
    changes: dict[str, Any] = {}
    notes: list[str] = []
    if module is None:
        check_encoder(origin, state, config.encoder, trust)
        changes, notes = _changes(config, origin["model"], origin.get("full_kwargs") or origin["kwargs"])
    loaded = load_with(config.encoder, changes, config.size, module, trust)
    return _with_classifier(config, loaded, classes, notes)


def _from_timm(config: FinetuneConfig, classes: int) -> InitialModel:
    name = config.encoder.removeprefix(WITH_TIMM_WEIGHTS)
    check_model_name(name)
    changes, notes = _changes(config, name, {})
    return _with_classifier(config, timm_weights(name, changes, config.size), classes, notes)


def _from_scratch(config: FinetuneConfig, classes: int, module: nn.Module | None) -> InitialModel:
    name = config.model or ""
    origin = {"model": name, "in_chans": config.in_chans, "mean": None, "std": None}
    if module is not None:
        loaded = Loaded(module, name_of(module), {}, origin, config.size, [], [])
        return _with_classifier(config, loaded, classes, [])
    check_model_name(name)
    changes, notes = _changes(config, name, config.model_kwargs)
    if tag := weights_tag(name):
        notes.append(f"random weights, not timm's {tag}: --encoder timm:{name} takes those")
    # Through the encoder, so that its position embedding starts as that of pre-training does.
    encoder = build_encoder(name, config.size, config.in_chans, {**config.model_kwargs, **changes})
    loaded = Loaded(encoder.model, name, encoder.model_kwargs, origin, config.size, [], [])
    return _with_classifier(config, loaded, classes, notes)


def _with_classifier(config: FinetuneConfig, loaded: Loaded, classes: int, notes: list[str]) -> InitialModel:
    model, kwargs, origin = loaded.model, loaded.kwargs, loaded.origin
    if hasattr(model, "reset_classifier") and hasattr(model, "get_classifier"):
        replace_classifier(loaded, classes)
        kwargs = {**kwargs, "num_classes": classes}
    else:
        encoder = Encoder(model, loaded.name, kwargs, loaded.size, origin["in_chans"])
        model = PooledClassifier(encoder, classes)
    if loaded.fresh:
        notes.append(f"newly initialised: {', '.join(loaded.fresh)}")
    if loaded.left_out:
        notes.append(f"not used: {', '.join(loaded.left_out)}, as the classifier sees {config.pool}")
    source = {"from": config.encoder, **origin}
    trained_at = origin.get("image_size")
    if trained_at is not None and as_size(trained_at) != config.size:
        height, width = config.size
        notes.append(f"trained at {trained_at[0]}x{trained_at[1]} pixels, here {height}x{width}")
    return InitialModel(
        model,
        loaded.name,
        kwargs,
        source,
        origin["in_chans"],
        _floats(origin["mean"]),
        _floats(origin["std"]),
        notes,
    )


def _floats(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _changes(config: FinetuneConfig, name: str, kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Drop path and pooling as arguments of the model, where it takes them."""
    plain = {key: value for key, value in kwargs.items() if key != "img_size"}
    shape = without_memory(partial(create, name, plain))
    takes = arguments_of(name, shape)
    changes: dict[str, Any] = {}
    notes = []
    if "drop_path_rate" in takes:
        changes["drop_path_rate"] = config.drop_path
    elif config.drop_path:
        notes.append(f"{name} has no drop path: drop_path = {config.drop_path} is left out")
    chooses = getattr(shape, "global_pool", None) in ("avg", "token") and "global_pool" in takes
    if config.pool != "model" and chooses and getattr(shape, "num_prefix_tokens", 0) > 0:
        changes["global_pool"] = config.pool
    elif config.pool == "token":
        raise UsageError(f"pool = token: {name} has no class token to choose; give pool = avg")
    return changes, notes
