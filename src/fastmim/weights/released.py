"""Load checkpoints released with the papers of MAE, SimMIM and FastMIM, under timm's keys.

timm renames Swin's and PVT's keys. Every key of a file must match the tables below, every tensor of the model
must be in the file, and none is resampled: nothing is skipped silently.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.pvt_v2 import checkpoint_filter_fn as pvt_keys
from timm.models.swin_transformer import checkpoint_filter_fn as swin_keys
from torch import Tensor

from fastmim.encoders.adapter import Encoder
from fastmim.encoders.registry import check_model_name, create, fit_kwargs, without_memory
from fastmim.errors import UsageError
from fastmim.weights.encoder_file import check_finite, check_kinds, describe_encoder, save_encoder, some_of
from fastmim.weights.spec import Layout

State = dict[str, Tensor]
Rename = Callable[[State, Any], State]


class Keys(NamedTuple):
    """Keys of one architecture in a release, as patterns, and their names in timm."""

    kept: str
    """Keys of the encoder; in pre-training checkpoints, "encoder." may precede them."""
    dropped: str
    """Keys that are left out on purpose."""
    rename: Rename = lambda state, model: state


_BLOCKS = r"cls_token|pos_embed|patch_embed\.proj\.\w+|blocks\.\d+\.[\w.]+"
VIT = _BLOCKS + r"|(?:norm|fc_norm|head)\.(?:weight|bias)"
# SimMIM's ViT is BEiT's, in timm beit_base_patch16_224.
BEIT = VIT + r"|rel_pos_bias\.relative_position_bias_table"
SWIN = r"patch_embed\.[\w.]+|layers\.\d+\.(?:blocks|downsample)\.[\w.]+|(?:norm|head)\.\w+"
PVT = r"patch_embed\d\.[\w.]+|block\d\.[\w.]+|norm\d\.[\w.]+|head\.\w+"
INDEX = r"(?:encoder\.)?[\w.]*(?:attn_mask|relative_position_index)"  # buffers that timm computes
DECODER = r"decoder_[\w.]+|mask_token"
SIMMIM_DECODER = r"decoder\.[\w.]+|encoder\.mask_token"
TABLES: dict[Layout, dict[str, Keys]] = {
    "mae": {"ViT": Keys(VIT, DECODER)},
    "simmim": {
        "Swin": Keys(SWIN, f"{INDEX}|{SIMMIM_DECODER}", swin_keys),
        "ViT": Keys(BEIT, f"{INDEX}|{SIMMIM_DECODER}"),
    },
    "fastmim": {
        "ViT": Keys(VIT, DECODER),
        "Swin": Keys(SWIN, f"{INDEX}|{DECODER}", swin_keys),
        "PVTv2": Keys(PVT, DECODER, pvt_keys),
    },
}
TARGETS: dict[Layout, str] = {"mae": "pixels", "simmim": "pixels", "fastmim": "hog"}
CLASSIFIER = re.compile(r"head\..*")  # keys that the file may lack


class Released(NamedTuple):
    """A released checkpoint under timm's keys."""

    metadata: dict[str, Any]
    """Description, as returned by `encoder_file.read_encoder`."""
    state: State
    missing_keys: list[str]
    """Keys of the model that are newly initialised: a classifier, if the file has none."""
    unexpected_keys: list[str]
    """Keys of the file that are not used: decoder, mask token, buffers that timm computes."""


def import_released(
    file: str | Path,
    layout: Layout,
    model: str,
    out: str | Path,
    model_kwargs: dict[str, Any] | None = None,
) -> Released:
    """Convert a released checkpoint to encoder.safetensors and encoder.json in the folder ``out``.

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
    """Read a released checkpoint; every key must be known, and every tensor of the model must be in the file.

    Args:
        file: written by torch.save; only tensors, plain values and argparse.Namespace are unpickled.
        layout: origin of the checkpoint: MAE's ViT; SimMIM's Swin or ViT; FastMIM's ViT, Swin or PVTv2.
        model: timm name of the architecture: vit_base_patch16_224, swin_base_patch4_window7_224, pvt_v2_b2;
            for SimMIM's ViT beit_base_patch16_224.
        model_kwargs: arguments of timm.create_model. Image size, window, pooling and number of classes are
            inferred from the weights if possible; the number of heads cannot be: FastMIM's ViT-B has 6.

    Raises:
        UsageError: the file cannot be read, has unknown or missing keys, or tensors of another shape.
    """
    if layout not in TABLES:
        raise UsageError(f"layout = {layout!r} must be one of {', '.join(TABLES)}")
    check_model_name(model)
    model_kwargs = model_kwargs or {}
    released = read_torch_file(Path(file).expanduser())
    check_finite(released, str(file))
    architecture, state, unexpected = _sorted_out(file, layout, released)
    if (layout, architecture) == ("fastmim", "ViT") and "num_heads" not in model_kwargs:
        raise UsageError(
            "FastMIM's released ViT-B has 6 heads and timm's 12, which the weights do not show: "
            "give model_kwargs = {'num_heads': 6}, or the number of heads of this checkpoint"
        )
    kwargs = {**_evident(released, state), **model_kwargs}
    stand_in = without_memory(partial(create, model, kwargs))
    side = kwargs.get("img_size", stand_in.pretrained_cfg["input_size"][1:])  # type: ignore[index]
    size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    kwargs = fit_kwargs(model, kwargs, size, kwargs.get("in_chans", 3))
    module = create(model, kwargs)
    wanted = module.state_dict()
    state = _for_each_block(TABLES[layout][architecture].rename(state, _Shapes(state)), wanted)
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
    metadata = describe_encoder(encoder, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, layout, TARGETS[layout])
    return Released({**metadata, "released": Path(file).name}, whole, missing, unexpected)


def read_torch_file(path: Path) -> State:
    """Read the tensors of a checkpoint, alone or under "model" or "state_dict". No code in it is executed.

    Raises:
        UsageError: the file cannot be read, or contains anything but tensors.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler of foreign bytes raises errors of any kind
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if blocked is None:
            raise UsageError(f"{path} was not written by torch.save, or is damaged") from error
        raise UsageError(
            f"{path} contains a {blocked[1]}, which could run code when it is read; if you trust the file, "
            "save the 'model' of torch.load(..., weights_only=False) to another file, and use that file"
        ) from error
    state = content.get("model", content.get("state_dict", content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{path} contains no weights: tensors by name are expected, alone or under 'model'")
    return state


def _sorted_out(file: str | Path, layout: Layout, released: State) -> tuple[str, State, list[str]]:
    """Return the architecture that matches all keys, the encoder's weights, and the keys not used."""
    unknown: dict[str, list[str]] = {}
    for architecture, keys in TABLES[layout].items():
        state, unexpected, unknown[architecture] = {}, [], []
        for key, value in released.items():
            if re.fullmatch(keys.dropped, key):
                unexpected.append(key)
            elif re.fullmatch(keys.kept, own := key.removeprefix("encoder.")):
                state[own] = value
            else:
                unknown[architecture].append(key)
        if state and not unknown[architecture]:
            return architecture, state, unexpected
    nearest = min(unknown, key=lambda architecture: len(unknown[architecture]))
    known = f"a {layout} release ({', '.join(TABLES[layout])})"
    raise UsageError(
        f"{file} is not {known}: unknown keys for {nearest}: {some_of(unknown[nearest]) or 'none'}"
    )


class _Shapes:
    """Stand-in for a model with the shapes of a state: timm renames its keys and resamples nothing."""

    def __init__(self, state: State) -> None:
        self.state = state
        weight = state.get("patch_embed.proj.weight")
        self.patch_embed = SimpleNamespace(proj=SimpleNamespace(weight=weight))

    def get_submodule(self, name: str) -> SimpleNamespace:
        """Return the attention layer of this name."""
        table = self.state[f"{name}.relative_position_bias_table"]
        return SimpleNamespace(relative_position_bias_table=table, window_size=(0, 0))


def _evident(released: State, state: State) -> dict[str, Any]:
    """Infer arguments of the model from the weights."""
    seen: dict[str, Any] = {}
    head = state.get("head.weight")
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
    if masks and patches is not None:  # (windows, tokens of a window, tokens of a window)
        seen["img_size"] = math.isqrt(masks[0].shape[0] * masks[0].shape[1]) * patches.shape[-1]
    return seen


def _for_each_block(state: State, wanted: Iterable[str]) -> State:
    """Copy the one relative-position table of SimMIM's ViT to each block, if the model has one per block."""
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
