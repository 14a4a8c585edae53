"""Build the classifier that fine-tuning starts from, with weights of a file or of timm, or random ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from fastmim.config import FinetuneConfig
from fastmim.downstream.backbone import drop_path_changes
from fastmim.downstream.classification.model import PooledClassifier
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.registry import arguments_of, create, weights_tag, without_memory
from fastmim.errors import UsageError
from fastmim.weights.load import RGB, load
from fastmim.weights.loaded import Loaded, as_size, replace_classifier
from fastmim.weights.spec import parse_weights


@dataclass(frozen=True)
class InitialModel:
    """Classifier at the start of fine-tuning."""

    model: nn.Module
    """Images (B, C, H, W) -> logits (B, classes)."""
    name: str
    kwargs: dict[str, Any]
    """Arguments that rebuild the model, with its classifier."""
    metadata: dict[str, Any]
    """Description of the weights, and their source."""
    in_chans: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    """Statistics of the images that the weights were trained on; None for random weights."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user."""


def build_classifier(config: FinetuneConfig, classes: int, module: nn.Module | None = None) -> InitialModel:
    """Build the classifier that ``config`` describes, at its image size.

    Random weights are drawn from torch's generator.

    Args:
        module: the model itself, if it is not built by name: the one that ``config.model`` names, or that was
            pre-trained.

    Raises:
        UsageError: the weights cannot be loaded, or do not match the model or the size.
    """
    spec = parse_weights(config.encoder)
    notes: list[str] = []

    def changes(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        found, said = _changes(config, name, kwargs)
        notes.extend(said)
        return found

    loaded = load(
        spec,
        config.size,
        module if module is not None else config.model,
        config.model_kwargs,
        config.in_chans,
        changes,
    )
    if spec.has_weights and config.in_chans not in (RGB, loaded.metadata["in_chans"]):
        trained_on = loaded.metadata["in_chans"]
        raise UsageError(f"in_chans = {config.in_chans}: the encoder was trained on {trained_on}")
    if spec.kind == "scratch" and module is None and (tag := weights_tag(config.model)):
        notes.append(f"random weights, not timm's {tag}; to use those, give --encoder timm:{config.model}")
    start = _with_classifier(config, loaded, classes, notes)
    head = start.model.get_classifier()  # type: ignore[operator]
    if isinstance(head, nn.Linear) and config.known_head_std:
        nn.init.trunc_normal_(head.weight, std=config.known_head_std)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    start.model.requires_grad_(True)
    return start


def _with_classifier(config: FinetuneConfig, loaded: Loaded, classes: int, notes: list[str]) -> InitialModel:
    model, kwargs, metadata = loaded.model, loaded.kwargs, loaded.metadata
    replaced: list[str] = []
    if hasattr(model, "reset_classifier") and hasattr(model, "get_classifier"):
        replaced = replace_classifier(loaded, classes)
        kwargs = {**kwargs, "num_classes": classes}
    else:
        encoder = Encoder(model, loaded.name, kwargs, loaded.size, metadata["in_chans"])
        model = PooledClassifier(encoder, classes)
    if missing := [key for key in loaded.missing_keys if key not in replaced]:
        notes.append(f"newly initialised: {', '.join(missing)}")
    if loaded.unexpected_keys:
        notes.append(f"not used: {', '.join(loaded.unexpected_keys)}, since pool = {config.pool}")
    trained_at = metadata.get("image_size")
    if trained_at is not None and as_size(trained_at) != config.size:
        height, width = config.size
        notes.append(f"trained at {trained_at[0]}x{trained_at[1]} pixels, here {height}x{width}")
    return InitialModel(
        model,
        loaded.name,
        kwargs,
        {"from": config.encoder, **metadata},
        metadata["in_chans"],
        _floats(metadata["mean"]),
        _floats(metadata["std"]),
        notes,
    )


def _floats(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def _changes(
    config: FinetuneConfig, name: str, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return drop path and pooling as arguments of the model, if it supports them, and messages."""
    plain = {key: value for key, value in kwargs.items() if key != "img_size"}
    shape = without_memory(partial(create, name, plain))
    takes = arguments_of(name, shape)
    changes, notes = drop_path_changes(config.drop_path, name, kwargs)
    chooses = getattr(shape, "global_pool", None) in ("avg", "token") and "global_pool" in takes
    if config.pool != "model" and chooses and getattr(shape, "num_prefix_tokens", 0) > 0:
        changes["global_pool"] = config.pool
    elif config.pool == "token":
        raise UsageError(f"pool = token: {name} has no class token; give pool = avg")
    return changes, notes
