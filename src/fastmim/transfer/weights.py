"""The pre-trained encoder as a file, and back as a plain timm module."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import timm
import torch
from torch import nn

from fastmim import __version__
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.models import (
    check_model_name,
    create,
    first_line,
    fit_kwargs,
    is_custom,
    is_known,
)
from fastmim.encoders.resize import resize
from fastmim.errors import UsageError
from fastmim.grids import Size
from fastmim.train.checkpoint import write_atomically

WEIGHTS = "encoder.safetensors"
ORIGIN = "encoder.json"

logger = logging.getLogger("fastmim")


def describe_encoder(
    encoder: Encoder, mean: tuple[float, ...], std: tuple[float, ...], method: str, target: str
) -> dict[str, Any]:
    """What encoder.json holds: how the model is rebuilt, and what its input must look like.

    ``kwargs`` build the model that the weights fit strictly; where blocks were left out (encoder.depth),
    ``full_kwargs`` build the one that has them.
    """
    shortened = encoder.full_kwargs != encoder.model_kwargs
    return {
        "model": encoder.model_name,
        "kwargs": encoder.model_kwargs,
        **({"full_kwargs": encoder.full_kwargs} if shortened else {}),
        "image_size": list(encoder.image_size),
        "in_chans": encoder.in_chans,
        "mean": list(mean),
        "std": list(std),
        "method": method,
        "target": target,
        "fastmim_version": __version__,
    }


def save_encoder(run: Path, model: nn.Module, origin: dict[str, Any]) -> None:
    """Write encoder.safetensors (timm's own keys; the description rides along) and encoder.json."""
    state = {}
    written = set()
    for name, value in model.state_dict().items():
        shared = value.data_ptr() in written  # safetensors takes no tensor under two names
        written.add(value.data_ptr())
        state[name] = (
            value.detach().cpu().contiguous().clone() if shared else value.detach().cpu().contiguous()
        )
    text = json.dumps(origin, indent=2)
    weights = safetensors.torch.save(state, metadata={"fastmim": text})
    write_atomically(run / WEIGHTS, lambda file: file.write(weights))
    write_atomically(run / ORIGIN, lambda file: file.write(text.encode() + b"\n"))


def read_encoder(run_or_file: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The description and the weights of an exported encoder.

    Args:
        run_or_file: a run directory, or an encoder.safetensors anywhere.

    Raises:
        UsageError: there is none, or it was not written by fastmim.
    """
    path = Path(run_or_file).expanduser()
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{run_or_file} holds no {WEIGHTS}; give a finished run's folder or that file")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get("fastmim")
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{file} is not a readable safetensors file: {error}") from error
    if text is None:
        beside = file.with_name(ORIGIN)
        if not beside.is_file():
            raise UsageError(f"{file} does not say which model it is, and no {ORIGIN} lies beside it")
        text = beside.read_text()
    origin: dict[str, Any] = json.loads(text)
    return origin, state


class Loaded(NamedTuple):
    """A backbone with the weights of a file."""

    model: nn.Module
    name: str
    kwargs: dict[str, Any]
    """What rebuilds it, see `encoders.models.create`; a classifier put on it since is left out."""
    origin: dict[str, Any]
    """What encoder.json says."""
    size: Size
    """(H, W) in pixels."""
    fresh: list[str]
    """Keys that are newly initialised."""
    left_out: list[str]
    """Keys of the file that the model has no place for, as it pools otherwise."""


def encoder_digest(encoder: str) -> str:
    """Of the file's bytes, whether an encoder is still the same; of other weights, their name."""
    path = Path(encoder).expanduser()
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        return encoder
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def load_encoder(
    run_or_file: str | Path,
    image_size: int | Size | None = None,
    num_classes: int | None = None,
    drop_path_rate: float = 0.0,
    model: nn.Module | None = None,
    global_pool: str | None = None,
) -> nn.Module:
    """A pre-trained backbone as a plain module, at any image size and with a new classifier.

    Args:
        run_or_file: a run directory of `fastmim pretrain` or `fastmim finetune`, or its encoder.safetensors.
        image_size: pixels, a side or (height, width); default: that of the run. Position
            embeddings, relative-position tables and windows are resampled where the model has them.
        num_classes: outputs of a new classifier; 0: none, the model gives features. Default: the
            classifier that the file has: none after pre-training.
        drop_path_rate: stochastic depth for fine-tuning (the paper's: 0.1 for ViT-B and Swin-B).
        model: the module to load into, where one of your own was pre-trained; it is built at the size of
            pre-training.
        global_pool: what the classifier sees, as timm's argument: "avg" or "token". Default: as in the file.

    Returns:
        The model that ``timm.create_model`` builds, in training mode. What is newly initialised (a
        classifier, blocks that pre-training left out) is logged as a warning of the logger "fastmim".

    Raises:
        UsageError: the file, the model or the size does not work.
    """
    changes: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    if global_pool is not None:
        changes["global_pool"] = global_pool
    loaded = load_with(run_or_file, changes, image_size, model)
    fresh = loaded.fresh
    if num_classes is not None and (num_classes or "num_classes" in loaded.kwargs):
        fresh = fresh + replace_classifier(loaded, num_classes)
    if fresh:
        parts = ", ".join(_parts(fresh, loaded.model))
        logger.warning("newly initialised in %s: %s", loaded.name, parts)
    if loaded.left_out:
        logger.warning("of %s, not used: %s", run_or_file, ", ".join(loaded.left_out))
    return loaded.model


def load_with(
    run_or_file: str | Path,
    changes: dict[str, Any],
    image_size: int | Size | None = None,
    model: nn.Module | None = None,
) -> Loaded:
    """The backbone, built with ``changes`` to its arguments (see `load_encoder`)."""
    origin, state = read_encoder(run_or_file)
    name, kwargs = origin["model"], dict(origin.get("full_kwargs", origin["kwargs"]))
    stored_pool = kwargs.get("global_pool")
    kwargs |= changes
    if model is None:
        if not (is_custom(name) or is_known(name)):
            raise UsageError(f"{run_or_file} holds the weights of your own module {name}: give it as model=")
        check_model_name(name)
        model = create(name, kwargs)
    fresh = sorted(set(model.state_dict()) - set(state))
    pools_otherwise = "global_pool" in changes and changes["global_pool"] != stored_pool
    left_out = sorted(set(state) - set(model.state_dict())) if pools_otherwise else []
    if "full_kwargs" not in origin and fresh and not pools_otherwise:
        raise UsageError(f"{run_or_file} does not fit {name}: it has no {', '.join(fresh)}")
    kept = {key: value for key, value in state.items() if key not in left_out}
    try:
        model.load_state_dict({**model.state_dict(), **kept}, strict=True)
    except RuntimeError as error:
        raise UsageError(f"{run_or_file} does not fit {name}: {' '.join(str(error).split())}") from error
    size = as_size(image_size) if image_size is not None else as_size(origin["image_size"])
    model, kwargs = resize(model, name, kwargs, as_size(origin["image_size"]), size)
    _note_input(model, origin, size)
    return Loaded(model, name, kwargs, origin, size, fresh, left_out)


def timm_weights(
    name: str, changes: dict[str, Any], image_size: int | Size | None = None, setting: str = "encoder"
) -> Loaded:
    """A backbone with the weights that timm has for it, as `load_with` gives ours.

    Args:
        setting: what asks for them, for messages.

    Raises:
        UsageError: timm has none, or they cannot be downloaded.
    """
    check_model_name(name)
    settings = timm.models.get_pretrained_cfg(name)
    if settings is None or not settings.has_weights:
        raise UsageError(
            f"{setting} = timm:{name}: timm has no weights of it; `timm.list_pretrained()` says of which"
        )
    chans, *sides = settings.input_size
    old = (sides[0], sides[1])
    kwargs = fit_kwargs(name, changes, old, chans)
    try:
        model = timm.create_model(name, pretrained=True, **kwargs)
    except Exception as error:  # of the network, the cache or the hub's client
        raise UsageError(
            f"{setting} = timm:{name}: its weights cannot be had: {first_line(error)}"
        ) from error
    origin = {
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
    return Loaded(model, name, kwargs, origin, size, [], [])


def replace_classifier(loaded: Loaded, num_classes: int) -> list[str]:
    """Put a new classifier on a model; returns its keys. Raises UsageError where it takes none."""
    model = loaded.model
    if not hasattr(model, "reset_classifier"):
        raise UsageError(
            f"num_classes = {num_classes}: {loaded.name} has no reset_classifier; add a classifier"
        )
    known = {name: value.data_ptr() for name, value in model.state_dict().items()}
    model.reset_classifier(num_classes)  # type: ignore[operator]
    return [name for name, value in model.state_dict().items() if known.get(name) != value.data_ptr()]


def _parts(keys: list[str], model: nn.Module) -> list[str]:
    """Names of the largest parts of a model of which no key is missing in ``keys``; single keys otherwise."""
    wanted = set(keys)
    known = list(model.state_dict())
    parts: dict[str, None] = {}
    for key in keys:
        names = key.split(".")
        prefixes = [".".join(names[:length]) for length in range(1, len(names))]
        whole = (p for p in prefixes if all(k in wanted for k in known if k.startswith(f"{p}.")))
        parts[next(whole, key)] = None
    return list(parts)


def as_size(size: Any) -> Size:
    """(H, W) of a side, or of two numbers."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _note_input(model: nn.Module, origin: dict[str, Any], size: Size) -> None:
    """Let ``timm.data.resolve_model_data_config(model)`` find the size, mean and std of pre-training."""
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    config |= {
        "input_size": (origin["in_chans"], *size),
        "mean": tuple(origin["mean"]),
        "std": tuple(origin["std"]),
    }
    model.pretrained_cfg = config  # type: ignore[assignment]
    model.default_cfg = config  # type: ignore[assignment]
