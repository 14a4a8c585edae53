"""Load a backbone as a feature pyramid, with the weights of any source, for detection and segmentation."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from fastmim.config.transfer import DenseConfig, TransferConfig
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.names import is_custom
from fastmim.encoders.plain_attention import TABLE, set_plain_attention
from fastmim.encoders.pyramid import FeaturePyramid, fit_image_size, freeze_unused
from fastmim.encoders.registry import arguments_of, check_model_name, create, without_memory
from fastmim.encoders.sizes import working_sizes
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.weights.encoder_file import describe_encoder, save_encoder
from fastmim.weights.load import RGB, factory_of, load
from fastmim.weights.spec import parse_weights

C = TypeVar("C", bound=TransferConfig)
INNER = "pyramid.encoder.model"
"""Name of the backbone within a segmenter or detector."""


@dataclass(frozen=True)
class PyramidBackbone:
    """Feature pyramid at the start of training, and where its weights come from."""

    pyramid: FeaturePyramid
    metadata: dict[str, Any]
    """Description of the weights, and their source."""
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    """Statistics of the images that the weights were trained on; None for random weights."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user."""

    @property
    def encoder(self) -> Encoder:
        """The backbone itself."""
        return self.pyramid.encoder


def load_backbone(config: DenseConfig, module: nn.Module | None = None) -> PyramidBackbone:
    """Build the feature pyramid that ``config`` describes, at its image size.

    Random weights are drawn from torch's generator.

    Args:
        module: the model itself, if it is not built by name.

    Raises:
        UsageError: the weights cannot be loaded, or the model gives no maps, or does not run at that size.
    """
    spec = parse_weights(config.encoder)
    notes: list[str] = []

    def changes(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        found, said = drop_path_changes(config.drop_path, name, kwargs)
        notes.extend(said)
        return found

    # Load the weights at their own size, and resize the backbone to one that holds the images.
    model = module if module is not None else config.model
    own_size = None
    if spec.kind == "scratch":
        own_size = config.size
        if isinstance(model, str):
            check_model_name(model)
            best = working_sizes(model, config.model_kwargs, config.in_chans).best()
            own_size = (best, best)
    loaded = load(spec, own_size, model, config.model_kwargs, config.in_chans, changes)
    metadata = loaded.metadata
    if spec.has_weights and config.in_chans not in (RGB, metadata["in_chans"]):
        trained_on = metadata["in_chans"]
        raise UsageError(f"in_chans = {config.in_chans}: the encoder was trained on {trained_on}")
    encoder = Encoder(loaded.model, loaded.name, loaded.kwargs, loaded.size, metadata["in_chans"])
    fit_image_size(encoder, config.size)
    set_plain_attention(encoder, config.vit_windows, config.relative_positions)
    # Build the pyramid.
    encoder.model.requires_grad_(True)
    pyramid = FeaturePyramid(encoder, config.size)
    freeze_unused(pyramid)
    if loaded.missing_keys:
        notes.append(f"newly initialised: {', '.join(loaded.missing_keys)}")
    if encoder.image_size != config.size:
        height, width = encoder.image_size
        notes.append(f"images are padded to {height}x{width} pixels for {loaded.name}")
    notes.append(pyramid.describe())
    return PyramidBackbone(
        pyramid,
        {"from": config.encoder, **metadata},
        _floats(metadata["mean"]),
        _floats(metadata["std"]),
        notes,
    )


def drop_path_changes(
    drop_path: float, name: str, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return drop path as an argument of the model, if the model supports it, and messages."""
    plain = {key: value for key, value in kwargs.items() if key != "img_size"}
    takes = arguments_of(name, without_memory(partial(create, name, plain)))
    if "drop_path_rate" in takes:
        return {"drop_path_rate": drop_path}, []
    return {}, [f"{name} has no drop path: drop_path = {drop_path} is ignored"] if drop_path else []


def with_factory(config: C, trust: Trust) -> C:
    """Set ``model`` to the factory that the encoder's file names, if any; every process may then import it.

    Raises:
        UsageError: the factory is not trusted, or the file cannot be read.
    """
    named = config.model is not None and not is_custom(config.model)  # for a file that names no model
    name = None if named else factory_of(config.encoder)
    if name is None:
        return config
    trust.check(name, config.encoder)
    return replace(config, model=name)


def attention_settings(config: DenseConfig) -> dict[str, Any]:
    """Return the settings of `set_plain_attention`, for the description of a model."""
    return {"vit_windows": config.vit_windows, "relative_positions": config.relative_positions}


def write_backbone(
    run: Path, backbone: PyramidBackbone, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Write the backbone in ``model`` as encoder.safetensors, which every command accepts as --encoder.

    Tables of relative positions, which timm's model does not have, are left out.
    """
    encoder = backbone.encoder
    past = ("from", "model", "method", "target")
    metadata = {
        **describe_encoder(encoder, mean, std, "fine-tuned", "none"),
        "fine_tuned_from": {key: backbone.metadata[key] for key in past if key in backbone.metadata},
    }
    del metadata["target"]
    save_encoder(run, model.get_submodule(INNER), metadata, leave_out=TABLE)


def _floats(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
