"""Rebuild a backbone as a torchvision model with the same weights.

The architecture is recognised by the keys and shapes of the weights. They do not show everything (such as an
activation or a stride), so `export_encoder` checks that the rebuilt model has the same outputs.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from fastmim.encoders.described import most_parameters
from fastmim.encoders.limits import limited
from fastmim.encoders.registry import MODEL_ERRORS
from fastmim.encoders.trust import check_plain
from fastmim.errors import UsageError, first_line
from fastmim.system.documents import Truth, checked, read_json
from fastmim.system.size import Size
from fastmim.weights.encoder_file import check_finite

State = dict[str, Tensor]

# timm's keys -> torchvision's. {i}, {j}, {k} are numbers, {x} is the rest of a key; torchvision counts the
# parts of stage i as {before} = 2i (downsampling) and {stage} = 2i + 1 (its blocks).
VIT_KEYS = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.{x}": "conv_proj.{x}",
    "blocks.{i}.norm1.{x}": "encoder.layers.encoder_layer_{i}.ln_1.{x}",
    "blocks.{i}.attn.qkv.{x}": "encoder.layers.encoder_layer_{i}.self_attention.in_proj_{x}",
    "blocks.{i}.attn.proj.{x}": "encoder.layers.encoder_layer_{i}.self_attention.out_proj.{x}",
    "blocks.{i}.norm2.{x}": "encoder.layers.encoder_layer_{i}.ln_2.{x}",
    "blocks.{i}.mlp.fc1.{x}": "encoder.layers.encoder_layer_{i}.mlp.0.{x}",
    "blocks.{i}.mlp.fc2.{x}": "encoder.layers.encoder_layer_{i}.mlp.3.{x}",
    "norm.{x}": "encoder.ln.{x}",
    "fc_norm.{x}": "encoder.ln.{x}",  # for average pooling, which `_vit` rejects
    "head.{x}": "heads.head.{x}",
}
SWIN_KEYS = {
    "patch_embed.proj.{x}": "features.0.0.{x}",
    "patch_embed.norm.{x}": "features.0.2.{x}",
    "layers.{i}.downsample.{x}": "features.{before}.{x}",
    "layers.{i}.blocks.{j}.norm{k}.{x}": "features.{stage}.{j}.norm{k}.{x}",
    "layers.{i}.blocks.{j}.attn.{x}": "features.{stage}.{j}.attn.{x}",
    "layers.{i}.blocks.{j}.mlp.fc1.{x}": "features.{stage}.{j}.mlp.0.{x}",
    "layers.{i}.blocks.{j}.mlp.fc2.{x}": "features.{stage}.{j}.mlp.3.{x}",
    "norm.{x}": "norm.{x}",
    "head.fc.{x}": "head.{x}",
}
CONVNEXT_KEYS = {
    "stem.{i}.{x}": "features.0.{i}.{x}",
    "stages.{i}.downsample.{j}.{x}": "features.{before}.{j}.{x}",
    "stages.{i}.blocks.{j}.gamma": "features.{stage}.{j}.layer_scale",
    "stages.{i}.blocks.{j}.conv_dw.{x}": "features.{stage}.{j}.block.0.{x}",
    "stages.{i}.blocks.{j}.norm.{x}": "features.{stage}.{j}.block.2.{x}",
    "stages.{i}.blocks.{j}.mlp.fc1.{x}": "features.{stage}.{j}.block.3.{x}",
    "stages.{i}.blocks.{j}.mlp.fc2.{x}": "features.{stage}.{j}.block.5.{x}",
    "head.norm.{x}": "classifier.0.{x}",
    "head.fc.{x}": "classifier.2.{x}",
}
RESNET_KEYS = {
    "conv1.weight": "conv1.weight",
    "bn1.{x}": "bn1.{x}",
    "layer{i}.{j}.conv{k}.weight": "layer{i}.{j}.conv{k}.weight",
    "layer{i}.{j}.bn{k}.{x}": "layer{i}.{j}.bn{k}.{x}",
    "layer{i}.{j}.downsample.{k}.{x}": "layer{i}.{j}.downsample.{k}.{x}",
    "fc.{x}": "fc.{x}",
}


class Layout(NamedTuple):
    """An architecture of torchvision."""

    constructor: Callable[..., nn.Module]
    keys: Mapping[str, str]
    arguments: Callable[[State, nn.Module, Size], dict[str, Any]]
    """Returns the constructor's arguments, as JSON values, for weights, module and image size."""
    last_layer: str
    """Name of the linear classifier, an Identity in models that return features."""


def as_torchvision(model: nn.Module, name: str, size: Size) -> tuple[nn.Module, dict[str, Any]]:
    """Return the torchvision model with the same weights, and the contents of its config.json.

    Args:
        model: with or without a classifier.
        name: name of the model, for messages.
        size: image height and width in pixels.

    Raises:
        UsageError: torchvision has no such model.
    """
    state = model.state_dict()
    renamed_by_name = {name: _renamed(state, layout.keys) for name, layout in LAYOUTS.items()}
    architecture, renamed = next(((n, r) for n, r in renamed_by_name.items() if r), ("", {}))
    if not renamed:
        raise UsageError(f"{name} is none of the architectures that torchvision has: {LAYOUT_NAMES}")
    layout = LAYOUTS[architecture]
    features = not any(key.startswith(f"{layout.last_layer}.") for key in renamed)
    complaint = f"{name} differs from torchvision's {architecture}: "
    try:
        arguments = layout.arguments(state, model, size)
        rebuilt = _build(architecture, arguments, features)
    except KeyError as error:
        raise UsageError(f"{complaint}it has no {error.args[0]}") from error
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UsageError(f"{complaint}{first_line(error)}") from error
    wanted = rebuilt.state_dict()
    # relative_position_index is the only buffer that timm computes and torchvision stores.
    missing = [k for k in wanted if k not in renamed and not k.endswith(".relative_position_index")]
    extra = [k for k in renamed if k not in wanted]
    wrong = [k for k in renamed if k in wanted and not _alike(renamed[k].shape, wanted[k].shape)]
    for what, keys in (("it has no", missing), ("torchvision has no", extra), ("of another shape:", wrong)):
        if keys:
            raise UsageError(f"{complaint}{what} {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}")
    rebuilt.load_state_dict({**wanted, **{k: v.reshape(wanted[k].shape) for k, v in renamed.items()}})
    return rebuilt, {
        "library": "torchvision",
        "architecture": architecture,
        "constructor": f"{layout.constructor.__module__}.{layout.constructor.__name__}",
        "arguments": arguments,
        "features": features,
        "last_layer": layout.last_layer,
    }


def load_torchvision(folder: str | Path) -> nn.Module:
    """Load the torchvision model from a folder that `export_encoder` wrote; it is in training mode.

    A model without classifier has an Identity in its place and returns features (B, D).

    Raises:
        UsageError: the folder does not contain an export for torchvision.
    """
    config_file, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    if not (config_file.is_file() and weights.is_file()):
        raise UsageError(f"{folder} is not an export: it holds no config.json and model.safetensors")
    config = checked(_Config, read_json(config_file), str(config_file))
    if config.library != "torchvision" or config.architecture not in LAYOUTS:
        raise UsageError(f"{config_file} does not describe an export for torchvision")
    check_plain(config.arguments, f"{config_file}: arguments", custom=False)
    try:
        state = safetensors.torch.load_file(weights)
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{weights} is not a readable safetensors file: {error}") from error
    check_finite(state, str(weights))
    numbers = sum(value.numel() for value in state.values())
    build = partial(_build, config.architecture, config.arguments, config.features)
    try:
        with torch.device("meta"), limited(most_parameters(numbers)):
            build()  # a check before memory is allocated
        model = build()
        model.load_state_dict(state)
    except MODEL_ERRORS as error:
        raise UsageError(f"{config_file} and {weights.name} do not fit: {first_line(error)}") from error
    return model


@dataclass(frozen=True)
class _Config:
    """Fields of an export's config.json that are read."""

    library: str
    architecture: str
    arguments: dict[str, Any]
    features: Truth


def _build(architecture: str, arguments: dict[str, Any], features: bool) -> nn.Module:
    layout = LAYOUTS[architecture]
    with torch.random.fork_rng(devices=[]):
        model = layout.constructor(**{k: _in_python(k, v) for k, v in arguments.items()})
    if features:
        parent, _, child = layout.last_layer.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def _in_python(argument: str, value: Any) -> Any:
    """Convert an argument from config.json to Python; JSON cannot represent classes."""
    if argument == "block_setting":
        return [CNBlockConfig(*stage) for stage in value]
    return {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[value] if argument == "block" else value


def _renamed(state: State, keys: Mapping[str, str]) -> State | None:
    """Return the weights under torchvision's keys; None if a key is not in the table."""
    patterns = {_pattern(old): new for old, new in keys.items()}
    renamed = {}
    for key, value in state.items():
        match, new = next(((m, n) for p, n in patterns.items() if (m := p.fullmatch(key))), (None, ""))
        if match is None:
            return None
        parts = match.groupdict()
        number = int(parts.get("i", 0))
        renamed[new.format(**parts, before=2 * number, stage=2 * number + 1)] = value
    return renamed


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    text = re.sub(r"\{([ijk])\}", r"(?P<\1>\\d+)", text)
    return re.compile(text.replace("{x}", r"(?P<x>[\w.]+)"))


def _alike(shape: torch.Size, other: torch.Size) -> bool:
    """Return whether shapes are equal but for axes of length 1: (D) and (D, 1, 1), for example."""
    return [n for n in shape if n != 1] == [n for n in other if n != 1]


def _vit(state: State, model: nn.Module, size: Size) -> dict[str, Any]:
    pool = "avg" if "fc_norm.weight" in state else getattr(model, "global_pool", "token")
    if pool != "token":
        raise UsageError(f"it pools by {pool!r}, and torchvision's by the class token")
    patches = state["patch_embed.proj.weight"]
    return {
        "image_size": _side("image", size),
        "patch_size": _side("patch", tuple(patches.shape[2:])),
        "num_layers": _count(state, r"blocks\.(\d+)\."),
        "num_heads": _only("number of heads", (getattr(m, "num_heads", None) for m in model.modules())),
        "hidden_dim": _channels(patches),
        "mlp_dim": len(state["blocks.0.mlp.fc1.weight"]),
        **_classes(state, "head"),
    }


def _swin(state: State, model: nn.Module, size: Size) -> dict[str, Any]:
    window = _only("window size", (getattr(m, "window_size", None) for m in model.modules()))
    patches = state["patch_embed.proj.weight"]
    width = _channels(patches)
    stages = range(_count(state, r"layers\.(\d+)\."))
    return {
        "patch_size": list(patches.shape[2:]),
        "embed_dim": width,
        "depths": [_count(state, rf"layers\.{i}\.blocks\.(\d+)\.") for i in stages],
        "num_heads": [
            state[f"layers.{i}.blocks.0.attn.relative_position_bias_table"].shape[1] for i in stages
        ],
        "window_size": list(window),
        "mlp_ratio": len(state["layers.0.blocks.0.mlp.fc1.weight"]) / width,
        "stochastic_depth_prob": 0.0,
        **_classes(state, "head.fc"),
    }


def _convnext(state: State, model: nn.Module, size: Size) -> dict[str, Any]:
    _channels(state["stem.0.weight"])
    stages = _count(state, r"stages\.(\d+)\.")
    widths = [len(state[f"stages.{i}.blocks.0.gamma"]) for i in range(stages)]
    depths = [_count(state, rf"stages\.{i}\.blocks\.(\d+)\.") for i in range(stages)]
    return {
        "block_setting": list(zip(widths, [*widths[1:], None], depths, strict=True)),
        **_classes(state, "head.fc"),
    }


def _resnet(state: State, model: nn.Module, size: Size) -> dict[str, Any]:
    _channels(state["conv1.weight"])
    middle = state["layer1.0.conv2.weight"]  # (width, width / groups, 3, 3)
    bottleneck = "layer1.0.conv3.weight" in state
    return {
        "block": "Bottleneck" if bottleneck else "BasicBlock",
        "layers": [_count(state, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4)],
        "groups": len(middle) // middle.shape[1],
        "width_per_group": middle.shape[1] if bottleneck else 64,
        **_classes(state, "fc"),
    }


def _channels(embedding: Tensor) -> int:
    """Return the output channels of the first convolution. Raises UsageError unless its input has three."""
    if embedding.shape[1] != 3:
        raise UsageError(f"it takes {embedding.shape[1]} channels, torchvision's models 3")
    return len(embedding)


def _classes(state: State, last_layer: str) -> dict[str, int]:
    weight = state.get(f"{last_layer}.weight")
    return {} if weight is None else {"num_classes": len(weight)}


def _count(state: State, numbered: str) -> int:
    return len({match[1] for key in state if (match := re.match(numbered, key))})


def _side(what: str, shape: tuple[int, ...]) -> int:
    if len(set(shape)) != 1:
        raise UsageError(f"its {what} size is {shape}, torchvision's are square")
    return shape[0]


def _only(what: str, values: Iterable[Any]) -> Any:
    """Return the single value among ``values`` apart from None. Raises UsageError if they differ."""
    found = sorted({value for value in values if value is not None})
    if len(found) != 1:
        raise UsageError(
            f"its {what} is not the same everywhere: {', '.join(map(str, found))}; try another image size"
        )
    return found[0]


LAYOUTS = {
    "ViT": Layout(VisionTransformer, VIT_KEYS, _vit, "heads.head"),
    "Swin": Layout(SwinTransformer, SWIN_KEYS, _swin, "head"),
    "ConvNeXt": Layout(ConvNeXt, CONVNEXT_KEYS, _convnext, "classifier.2"),
    "ResNet": Layout(ResNet, RESNET_KEYS, _resnet, "fc"),
}
LAYOUT_NAMES = "ViT with a class token, Swin, ConvNeXt (version 1) and ResNet, as in their first papers"
