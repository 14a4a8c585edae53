"""Checkpoints that others have released, under timm's keys: MAE, SimMIM and the FastMIM paper's own.

Which of their keys is which of timm's stands in the tables below. Each key of a file must match a line, each
tensor of the model must be filled: nothing is skipped in silence.
"""

import argparse
import math
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmim.data.transforms.crops import IMAGENET_MEAN, IMAGENET_STD
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.registry import check_model_name, create, fit_kwargs, without_memory
from fastmim.errors import UsageError
from fastmim.weights.encoder_file import check_finite, check_kinds, describe_encoder, save_encoder, some_of
from fastmim.weights.spec import Layout

State = dict[str, Tensor]
# What a key must be, and what it becomes; None: it is left out on purpose.
Line = tuple[str, str | Callable[[re.Match[str]], str] | None]


def _next_stage(match: re.Match[str]) -> str:
    """Their stage ends with what makes the map smaller, timm's next stage begins with it."""
    return f"layers.{int(match[1]) + 1}.downsample.{match[2]}"


def _pvt_embedding(match: re.Match[str]) -> str:
    """Theirs are counted from 1; timm's first stands outside of the stages."""
    return (
        f"patch_embed.{match[2]}" if match[1] == "1" else f"stages.{int(match[1]) - 1}.downsample.{match[2]}"
    )


def _pvt_stage(match: re.Match[str]) -> str:
    return f"stages.{int(match[2]) - 1}.{'blocks' if match[1] == 'block' else 'norm'}.{match[3]}"


def _pvt_depthwise(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) - 1}.blocks.{match[2]}.mlp.dwconv.{match[3]}"


_OF = r"(?:encoder\.)?"  # stands before the encoder's keys in pre-training, not after fine-tuning
_ENDS = r"((?:norm|fc_norm|head)\.(?:weight|bias))"
VIT: list[Line] = [
    (_OF + r"(cls_token|pos_embed|patch_embed\.proj\.\w+|blocks\.\d+\.[\w.]+)", r"\1"),
    (_OF + _ENDS, r"\1"),
]
# SimMIM's ViT is BEiT's: timm's beit_base_patch16_224.
BEIT: list[Line] = [
    (_OF + r"[\w.]*relative_position_index", None),
    (_OF + r"(rel_pos_bias\.relative_position_bias_table)", r"\1"),
    *VIT,
]
SWIN: list[Line] = [
    (_OF + r"layers\.[\w.]+\.(?:attn_mask|relative_position_index)", None),
    (_OF + r"layers\.(\d+)\.downsample\.([\w.]+)", _next_stage),
    (_OF + r"(patch_embed\.[\w.]+|layers\.\d+\.blocks\.[\w.]+|norm\.\w+)", r"\1"),
    (_OF + r"head\.(\w+)", r"head.fc.\1"),
]
PVT: list[Line] = [
    (_OF + r"patch_embed(\d)\.([\w.]+)", _pvt_embedding),
    (_OF + r"block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.(\w+)", _pvt_depthwise),
    (_OF + r"(block|norm)(\d)\.([\w.]+)", _pvt_stage),
    (r"(head\.\w+)", r"\1"),
]
DECODER: list[Line] = [(r"decoder_[\w.]+|mask_token", None)]
SIMMIM_DECODER: list[Line] = [(r"decoder\.[\w.]+|encoder\.mask_token", None)]
TABLES: dict[Layout, dict[str, list[Line]]] = {
    "mae": {"ViT": VIT + DECODER},
    "simmim": {"Swin": SWIN + SIMMIM_DECODER, "ViT": BEIT + SIMMIM_DECODER},
    "fastmim": {"ViT": VIT + DECODER, "Swin": SWIN + DECODER, "PVTv2": PVT + DECODER},
}
TARGETS: dict[Layout, str] = {"mae": "pixels", "simmim": "pixels", "fastmim": "hog"}
CLASSIFIER = re.compile(r"head\..*")  # what a model may have more than the file


class Released(NamedTuple):
    """A released checkpoint under timm's keys."""

    metadata: dict[str, Any]
    """Its description, as `encoder_file.read_encoder` gives that of an encoder."""
    state: State
    missing_keys: list[str]
    """Keys of the model that are newly initialised: a classifier that the file does not have."""
    unexpected_keys: list[str]
    """Keys of the file that are left out: a decoder, a mask token, buffers that timm computes."""


def import_released(
    file: str | Path,
    layout: Layout,
    model: str,
    out: str | Path,
    model_kwargs: dict[str, Any] | None = None,
) -> Released:
    """Write a released checkpoint as encoder.safetensors and encoder.json into the folder ``out``.

    Arguments and errors are those of `read_released`.
    """
    released = read_released(file, layout, model, model_kwargs)
    module = create(model, released.metadata["kwargs"])
    module.load_state_dict(released.state)
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    save_encoder(folder, module, released.metadata)
    return released


def read_released(
    file: str | Path, layout: Layout, model: str, model_kwargs: Mapping[str, Any] | None = None
) -> Released:
    """Read a released checkpoint: every key is matched, every tensor of the model is filled.

    Args:
        file: what torch.save wrote; only tensors, plain values and argparse.Namespace are unpickled.
        layout: who released it: MAE's ViT; SimMIM's Swin or ViT; FastMIM's ViT, Swin or PVTv2.
        model: timm's name of the architecture: vit_base_patch16_224, swin_base_patch4_window7_224,
            pvt_v2_b2; for SimMIM's ViT beit_base_patch16_224.
        model_kwargs: arguments of timm.create_model. Image size, window, pooling and number of classes are
            seen in the weights where they can be; heads cannot: FastMIM's ViT-B has 6.

    Raises:
        UsageError: keys that no line of the table knows, keys missing or of another shape, or a file that
            cannot be read.
    """
    if layout not in TABLES:
        raise UsageError(f"layout = {layout!r} must be one of {', '.join(TABLES)}")
    check_model_name(model)
    model_kwargs = model_kwargs or {}
    released = read_torch_file(Path(file).expanduser())
    check_finite(released, str(file))
    architecture, state, unexpected = _renamed(file, layout, released)
    if (layout, architecture) == ("fastmim", "ViT") and "num_heads" not in model_kwargs:
        raise UsageError(
            "FastMIM's released ViT-B has 6 heads where timm's has 12, and no key shows it: "
            "say model_kwargs = {'num_heads': 6}, or the number that this one has"
        )
    kwargs = {**_evident(released, state), **model_kwargs}
    stand_in = without_memory(partial(create, model, kwargs))
    side = kwargs.get("img_size", stand_in.pretrained_cfg["input_size"][1:])  # type: ignore[index]
    size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    kwargs = fit_kwargs(model, kwargs, size, kwargs.get("in_chans", 3))
    module = create(model, kwargs)
    wanted = module.state_dict()
    state = _for_each_block(state, wanted)
    classifier = [key for key in wanted if CLASSIFIER.fullmatch(key)]
    missing = [] if any(key in state for key in classifier) else classifier
    _complain(
        f"{file} does not fit {model} with {kwargs}",
        {
            "it has no": [key for key in wanted if key not in state and key not in missing],
            "the model has no": [key for key in state if key not in wanted],
            "of another shape:": [
                f"{key} {_form(state[key])} instead of {_form(wanted[key])}"
                for key in wanted
                if key in state and state[key].shape != wanted[key].shape
            ],
        },
    )
    check_kinds(state, wanted, str(file))
    whole = {key: state[key].to(value.dtype) if key in state else value for key, value in wanted.items()}
    module.load_state_dict(whole)
    encoder = Encoder(module, model, kwargs, size, kwargs.get("in_chans", 3))
    metadata = describe_encoder(encoder, IMAGENET_MEAN, IMAGENET_STD, layout, TARGETS[layout])
    return Released({**metadata, "released": Path(file).name}, whole, missing, unexpected)


def read_torch_file(path: Path) -> State:
    """The tensors of a checkpoint, alone or under "model" or "state_dict". Nothing in the file is executed.

    Raises:
        UsageError: it cannot be read, or holds more than tensors.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if blocked is None:
            raise UsageError(f"{path} is not a file that torch.save wrote, or is damaged") from error
        raise UsageError(
            f"{path} holds a {blocked[1]}, which could run code as it is read; if you trust it, save the "
            "'model' of torch.load(..., weights_only=False) to another file, and read that"
        ) from error
    state = content.get("model", content.get("state_dict", content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path} holds no weights: tensors by name are expected, alone or under 'model'")
    return state


def _renamed(file: str | Path, layout: Layout, released: State) -> tuple[str, State, list[str]]:
    """The architecture whose table knows all keys, the weights under timm's, and the keys left out."""
    unknown: dict[str, list[str]] = {}
    for architecture, table in TABLES[layout].items():
        state, unexpected, unknown[architecture] = {}, [], []
        for key, value in released.items():
            match, new = next(
                ((match, new) for old, new in table if (match := re.fullmatch(old, key))), (None, None)
            )
            if match is None:
                unknown[architecture].append(key)
            elif new is None:
                unexpected.append(key)
            else:
                state[match.expand(new) if isinstance(new, str) else new(match)] = value
        if state and not unknown[architecture]:
            return architecture, state, unexpected
    nearest = min(unknown, key=lambda architecture: len(unknown[architecture]))
    known = f"a {layout} release ({', '.join(TABLES[layout])})"
    raise UsageError(
        f"{file} is not {known}: for {nearest}, unknown are {some_of(unknown[nearest]) or 'none'}"
    )


def _evident(released: State, state: State) -> dict[str, Any]:
    """Arguments of the model that can be seen in the weights."""
    seen: dict[str, Any] = {}
    head = state.get("head.weight", state.get("head.fc.weight"))
    if head is not None:
        seen["num_classes"] = len(head)
    patches = state.get("patch_embed.proj.weight")
    if "cls_token" in state:
        seen["global_pool"] = "avg" if "fc_norm.weight" in state else "token"
        if patches is not None and "pos_embed" in state:
            seen["img_size"] = math.isqrt(state["pos_embed"].shape[1] - 1) * patches.shape[-1]
    table = state.get("layers.0.blocks.0.attn.relative_position_bias_table")
    masks = [value for key, value in released.items() if key.endswith("layers.0.blocks.1.attn_mask")]
    if table is not None:
        seen["window_size"] = (math.isqrt(len(table)) + 1) // 2
    if masks and patches is not None:  # (windows, places of a window, the same)
        seen["img_size"] = math.isqrt(masks[0].shape[0] * masks[0].shape[1]) * patches.shape[-1]
    return seen


def _for_each_block(state: State, wanted: Iterable[str]) -> State:
    """SimMIM's ViT has one table of relative positions; a model with one a block gets it in each."""
    shared = "rel_pos_bias.relative_position_bias_table"
    own = [key for key in wanted if re.fullmatch(r"blocks\.\d+\.attn\.relative_position_bias_table", key)]
    if shared not in state or not own:
        return state
    rest = {key: value for key, value in state.items() if key != shared}
    return {**rest, **dict.fromkeys(own, state[shared])}


def _complain(what: str, complaints: dict[str, list[str]]) -> None:
    found = [f"{complaint} {some_of(keys)}" for complaint, keys in complaints.items() if keys]
    if found:
        raise UsageError(f"{what}: {'; '.join(found)}")


def _form(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
