"""The pre-trained encoder as a file, and back as a plain timm module."""

import json
import logging
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from fastmim import __version__
from fastmim.encoders.adapter import Encoder
from fastmim.encoders.models import check_model_name, create, is_custom, is_known
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


def load_encoder(
    run_or_file: str | Path,
    image_size: int | Size | None = None,
    num_classes: int = 0,
    drop_path_rate: float = 0.0,
    model: nn.Module | None = None,
) -> nn.Module:
    """A pre-trained backbone as a plain module, at any image size and with a new classifier.

    Args:
        run_or_file: a run directory of `fastmim pretrain`, or its encoder.safetensors.
        image_size: pixels, a side or (height, width); default: that of pre-training. Position
            embeddings, relative-position tables and windows are resampled where the model has them.
        num_classes: outputs of a new classifier; 0: none, the model gives features.
        drop_path_rate: stochastic depth for fine-tuning (the paper's: 0.1 for ViT-B and Swin-B).
        model: the module to load into, where one of your own was pre-trained; it is built at the size of
            pre-training.

    Returns:
        The model that ``timm.create_model`` builds, in training mode. What is newly initialised (a
        classifier, blocks that pre-training left out) is logged as a warning of the logger "fastmim".

    Raises:
        UsageError: the file, the model or the size does not work.
    """
    origin, state = read_encoder(run_or_file)
    name, kwargs = origin["model"], dict(origin.get("full_kwargs", origin["kwargs"]))
    if drop_path_rate:
        kwargs["drop_path_rate"] = drop_path_rate
    if model is None:
        if not (is_custom(name) or is_known(name)):
            raise UsageError(f"{run_or_file} holds the weights of your own module {name}: give it as model=")
        check_model_name(name)
        model = create(name, kwargs)
    missing = sorted(set(model.state_dict()) - set(state))
    if "full_kwargs" not in origin and missing:
        raise UsageError(f"{run_or_file} does not fit {name}: it has no {', '.join(missing)}")
    try:
        model.load_state_dict({**model.state_dict(), **state}, strict=True)
    except RuntimeError as error:
        raise UsageError(f"{run_or_file} does not fit {name}: {' '.join(str(error).split())}") from error
    size = _pair(image_size) if image_size is not None else _pair(origin["image_size"])
    model, _ = resize(model, name, kwargs, _pair(origin["image_size"]), size)
    if num_classes:
        if not hasattr(model, "reset_classifier"):
            raise UsageError(f"num_classes = {num_classes}: {name} has no reset_classifier; add a classifier")
        known = set(model.state_dict())
        model.reset_classifier(num_classes)  # type: ignore[operator]
        missing += [key for key in model.state_dict() if key not in known]
    _note_input(model, origin, size)
    if missing:
        logger.warning("newly initialised in %s: %s", name, ", ".join(_parts(missing, model)))
    return model


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


def _pair(size: Any) -> Size:
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
