"""The pre-trained encoder as a file, and back as a plain timm module."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastmim.encoders.build import name_of
from fastmim.encoders.described import check_described, most_parameters
from fastmim.encoders.limits import limited
from fastmim.encoders.names import is_custom
from fastmim.encoders.registry import check_model_name, create, fit_kwargs, is_known
from fastmim.encoders.resize import resize
from fastmim.encoders.trust import NOTHING, Trust
from fastmim.errors import UsageError, first_line
from fastmim.system.size import Size
from fastmim.weights.encoder_file import ORIGIN as ORIGIN
from fastmim.weights.encoder_file import WEIGHTS as WEIGHTS
from fastmim.weights.encoder_file import check_kinds, read_description, some_of
from fastmim.weights.encoder_file import describe_encoder as describe_encoder
from fastmim.weights.encoder_file import encoder_digest as encoder_digest
from fastmim.weights.encoder_file import read_encoder as read_encoder
from fastmim.weights.encoder_file import save_encoder as save_encoder

logger = logging.getLogger("fastmim")


class Loaded(NamedTuple):
    """A backbone with the weights of a file."""

    model: nn.Module
    name: str
    kwargs: dict[str, Any]
    """What rebuilds it, see `encoders.registry.create`; a classifier put on it since is left out."""
    origin: dict[str, Any]
    """What encoder.json says."""
    size: Size
    """(H, W) in pixels."""
    fresh: list[str]
    """Keys that are newly initialised."""
    left_out: list[str]
    """Keys of the file that the model has no place for, as it pools otherwise."""


def load_encoder(
    run_or_file: str | Path,
    image_size: int | Size | None = None,
    num_classes: int | None = None,
    drop_path_rate: float = 0.0,
    model: nn.Module | str | None = None,
    global_pool: str | None = None,
    trust_code: bool = False,
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
            pre-training. Or the ``package.module:factory`` that the file names: none is imported because a
            file says so.
        global_pool: what the classifier sees, as timm's argument: "avg" or "token". Default: as in the file.
        trust_code: import and call whatever factory the file names.

    Returns:
        The model that ``timm.create_model`` builds, in training mode. What is newly initialised (a
        classifier, blocks that pre-training left out) is logged as a warning of the logger "fastmim".

    Raises:
        UsageError: the file, the model or the size does not work.
    """
    changes: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    if global_pool is not None:
        changes["global_pool"] = global_pool
    module, trust = as_given(model, trust_code)
    loaded = load_with(run_or_file, changes, image_size, module, trust)
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
    trust: Trust = NOTHING,
    setting: str = "model",
) -> Loaded:
    """The backbone, built with ``changes`` to its arguments (see `load_encoder`).

    Args:
        trust: which factories may be imported though the file names them.
        setting: where the user would give a factory's name.
    """
    origin, state = read_encoder(run_or_file)
    name, kwargs = origin["model"], dict(origin.get("full_kwargs") or origin["kwargs"])
    stored_pool = kwargs.get("global_pool")
    kwargs |= changes
    pools_otherwise = "global_pool" in changes and changes["global_pool"] != stored_pool
    fit = partial(_fit, state, str(run_or_file), name, bool(origin.get("full_kwargs")), pools_otherwise)
    if model is None or is_known(name) or trust.allows(name):
        stand_in = check_encoder(origin, state, str(run_or_file), trust, setting, changes)
        if model is None and stand_in is not None:
            fit(stand_in.state_dict())  # before memory is taken
    else:
        name, kwargs = name_of(model), {}  # what the file says of it is not built, at no size
    if model is None:
        with limited(most_parameters(count(state))):
            model = create(name, kwargs)
    fresh, left_out = fit(model.state_dict())
    kept = {key: value for key, value in state.items() if key not in left_out}
    try:
        model.load_state_dict({**model.state_dict(), **kept}, strict=True)
    except RuntimeError as error:
        raise UsageError(f"{run_or_file} does not fit {name}: {' '.join(str(error).split())}") from error
    size = as_size(image_size) if image_size is not None else as_size(origin["image_size"])
    model, kwargs = resize(model, name, kwargs, as_size(origin["image_size"]), size)
    _note_input(model, origin, size)
    return Loaded(model, name, kwargs, origin, size, fresh, left_out)


def _fit(
    state: Mapping[str, Tensor],
    where: str,
    name: str,
    blocks_left_out: bool,
    pools_otherwise: bool,
    wanted: Mapping[str, Tensor],
) -> tuple[list[str], list[str]]:
    """Keys of a model that a file has not, and keys of the file that a model which pools otherwise has not.

    Raises:
        UsageError: keys are missing, unknown, of another shape, or of another kind of number.
    """
    fresh = sorted(set(wanted) - set(state))
    unknown = sorted(set(state) - set(wanted))
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and not is_lazy(value) and state[key].shape != value.shape
    ]
    for complaint, keys in (
        ("it has no", [] if blocks_left_out or pools_otherwise else fresh),
        ("the model has no", [] if pools_otherwise else unknown),
        ("of another shape:", other),
    ):
        if keys:
            raise UsageError(f"{where} does not fit {name}: {complaint} {some_of(keys)}")
    check_kinds(state, wanted, where)
    return fresh, unknown


def check_encoder(
    origin: dict[str, Any],
    state: dict[str, Tensor],
    where: str,
    trust: Trust = NOTHING,
    setting: str = "model",
    changes: dict[str, Any] | None = None,
) -> nn.Module | None:
    """Build the model that a file describes, with ``changes``, without memory; see `check_described`."""
    name = origin["model"]
    if trust.names and name not in trust.names and not is_custom(name):
        raise UsageError(f"{setting} = {next(iter(trust.names))}: {where} is of {name}; leave {setting} out")
    kwargs = {**(origin.get("full_kwargs") or origin["kwargs"]), **(changes or {})}
    return check_described(name, kwargs, count(state), where, trust, setting)


def count(state: dict[str, Tensor]) -> int:
    """Numbers that weights are."""
    return sum(value.numel() for value in state.values())


def as_given(model: nn.Module | str | None, trust_code: bool) -> tuple[nn.Module | None, Trust]:
    """Of a model that somebody gave: the module, or which factory may be imported."""
    module = model if isinstance(model, nn.Module) else None
    return module, Trust.of(model, everything=trust_code)


def factory_of(encoder: str | Path) -> str | None:
    """The factory that an encoder's file names, if it does; nothing is imported. Raises UsageError."""
    _, origin = read_description(encoder)
    name: str = origin["model"]
    return name if is_custom(name) else None


def timm_weights(
    name: str, changes: dict[str, Any], image_size: int | Size | None = None, setting: str = "encoder"
) -> Loaded:
    """A backbone with the weights that timm has for it, as `load_with` gives ours.

    Args:
        setting: what asks for them, for messages.

    Raises:
        UsageError: timm has none, or they cannot be downloaded.
    """
    if is_custom(name):
        raise UsageError(f"{setting} = timm:{name}: a name of timm's is needed, as timm:vit_base_patch16_224")
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
