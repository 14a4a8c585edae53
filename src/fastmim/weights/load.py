"""Load a backbone and its weights from any source; all commands use these functions."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastmim.encoders.build import build_encoder, name_of
from fastmim.encoders.names import is_custom
from fastmim.encoders.registry import check_model_name, create, fit_kwargs, without_memory
from fastmim.encoders.trust import Trust
from fastmim.errors import UsageError
from fastmim.system.size import Size
from fastmim.weights.encoder_file import read_description, read_encoder
from fastmim.weights.loaded import Loaded, as_size, replace_classifier
from fastmim.weights.rebuild import Changes, changed, rebuild
from fastmim.weights.released import read_released
from fastmim.weights.spec import WeightsSpec, parse_weights
from fastmim.weights.timm_weights import own_size, read_timm_file, timm_weights

RGB = 3  # default number of channels

logger = logging.getLogger("fastmim")


class _Wanted(NamedTuple):
    """The backbone that a caller of `load` asks for, apart from its name."""

    image_size: int | Size | None
    model_kwargs: dict[str, Any]
    in_chans: int
    changes: Changes
    group: str
    """Prefix of the settings' names in messages."""


def load(
    source: str | Path | WeightsSpec,
    image_size: int | Size | None = None,
    model: nn.Module | str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    in_chans: int = RGB,
    changes: Changes | None = None,
    trust_code: bool = False,
    setting: str = "encoder",
) -> Loaded:
    """Build a backbone with the weights of ``source``, at any image size.

    Args:
        source: a run's folder or its encoder.safetensors; ``timm:NAME``; ``none`` for newly initialised
            weights, drawn from torch's generator as in pre-training, or by timm without ``image_size``; or,
            with ``model``, a file with timm's keys, or a released checkpoint as ``mae:FILE``, ``simmim:FILE``
            or ``fastmim:FILE``.
        image_size: pixels, a side or (height, width); default: that of the weights.
        model: name of the backbone, if the source does not name it; a module; or the factory that the file
            names, which is not imported otherwise.
        model_kwargs: further arguments of the backbone that ``model`` or ``timm:`` names.
        in_chans: channels of newly initialised weights, or of a file with timm's keys.
        changes: arguments that replace those of the source, or a function that maps the model's name and
            arguments to them. Not applied to a module.
        trust_code: import and call any factory that the file names.
        setting: name of the field that holds ``source``, for messages; ``model`` and ``model_kwargs`` are in
            the same group.

    Raises:
        UsageError: the weights cannot be loaded, or do not match the model or the size.
    """
    spec = source if isinstance(source, WeightsSpec) else parse_weights(source)
    given, changes = dict(model_kwargs or {}), changes if changes is not None else {}
    group = f"{setting.rpartition('.')[0]}." if "." in setting else ""
    wanted = _Wanted(image_size, given, in_chans, changes, group)
    if spec.kind == "missing":
        raise UsageError(f"{setting} is missing: give a run's folder, an encoder.safetensors or timm:NAME")
    if spec.kind == "scratch":
        return _new(model, setting, wanted)
    if spec.kind == "timm":
        if model is not None:
            shown = model if isinstance(model, str) else name_of(model)
            raise UsageError(f"{group}model = {shown}: {setting} = {spec.text} already names the model")
        return timm_weights(spec.name, given, changes, image_size, setting)
    if isinstance(model, nn.Module) or _describes_itself(spec, model):
        module = model if isinstance(model, nn.Module) else None
        _check_undescribed(spec, model, given, group)
        trust = Trust.of(model, everything=trust_code)
        metadata, state = read_encoder(spec.file)
        return rebuild(metadata, state, spec.file, changes, image_size, module, trust, f"{group}model")
    return _undescribed(spec, model, wanted)


def load_encoder(
    run_or_file: str | Path,
    image_size: int | Size | None = None,
    num_classes: int | None = None,
    drop_path_rate: float = 0.0,
    model: nn.Module | str | None = None,
    global_pool: str | None = None,
    trust_code: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load a pre-trained backbone as a plain module, at any image size and with a new classifier.

    Args:
        run_or_file: folder of a run of `fastmim pretrain` or `fastmim finetune`, its encoder.safetensors, or
            any other source of weights that `load` accepts.
        image_size: pixels, a side or (height, width); default: that of the run. Position embeddings,
            relative-position tables and windows are resampled if the model has them.
        num_classes: outputs of a new classifier; 0: none, the model returns features. Default: the
            classifier in the file; after pre-training there is none.
        drop_path_rate: stochastic depth for fine-tuning (the paper's: 0.1 for ViT-B and Swin-B).
        model: the module to load into, if the run pre-trained a module; it must be built at the image size of
            pre-training. Or the ``package.module:factory`` that the file names, which is not imported
            otherwise. Or the timm name of the backbone, if the file does not name it.
        global_pool: pooling before the classifier, as in timm: "avg" or "token". Default: as in the file.
        trust_code: import and call any factory that the file names.
        model_kwargs: further arguments of the backbone that ``model`` names, if the file does not name it.

    Returns:
        The model, as built by ``timm.create_model``, in training mode. Newly initialised parts (a classifier,
        blocks that pre-training left out) are logged as a warning of the logger "fastmim".

    Raises:
        UsageError: the file, the model or the size is invalid.
    """
    changes: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    if global_pool is not None:
        changes["global_pool"] = global_pool
    loaded = load(run_or_file, image_size, model, model_kwargs, changes=changes, trust_code=trust_code)
    missing = loaded.missing_keys
    if num_classes is not None and (num_classes or "num_classes" in loaded.kwargs):
        missing = missing + replace_classifier(loaded, num_classes)
    if missing:
        parts = ", ".join(_parts(missing, loaded.model))
        logger.warning("newly initialised in %s: %s", loaded.name, parts)
    if loaded.unexpected_keys:
        logger.warning("of %s, not used: %s", run_or_file, ", ".join(loaded.unexpected_keys))
    return loaded.model


def factory_of(source: str | Path) -> str | None:
    """Return the factory that an encoder file names, or None; nothing is imported.

    Raises:
        UsageError: the source is a file or folder without a description.
    """
    spec = parse_weights(source)
    if spec.kind != "file":
        return None
    _, metadata = read_description(spec.file)
    name: str = metadata["model"]
    return name if is_custom(name) else None


def _describes_itself(spec: WeightsSpec, model: str | None) -> bool:
    """Return whether a source has a description by fastmim; if ``model`` is None, it must have one."""
    if spec.kind != "file":
        return False
    if model is None or spec.path.is_dir():
        return True
    try:
        _, metadata = read_description(spec.file)
    except UsageError:
        return False
    return not is_custom(model) or is_custom(metadata["model"])  # otherwise, weights for that factory


def _check_undescribed(
    spec: WeightsSpec, model: nn.Module | str | None, model_kwargs: Mapping[str, Any], group: str
) -> None:
    """Raise UsageError if the user describes the model of a source that has a description."""
    named = model if isinstance(model, str) and not is_custom(model) else None
    for name, value in (("model", named), ("model_kwargs", model_kwargs)):
        if value:
            raise UsageError(f"{group}{name} = {value}: {spec.file} already names its model; leave it out")
    if model is None and spec.path.is_file() and spec.path.suffix != ".safetensors":
        raise UsageError(f"{group}model is missing: {spec.file} does not name its model; give its timm name")


def _undescribed(spec: WeightsSpec, model: str | None, wanted: _Wanted) -> Loaded:
    """Load a file that does not name its model: another project's, or one with timm's keys."""
    if model is None:
        raise UsageError(
            f"{wanted.group}model is missing: {spec.text} does not name its model; give its timm name"
        )
    kwargs = wanted.model_kwargs
    missing: list[str] = []
    metadata: dict[str, Any]
    state: dict[str, Tensor]
    if spec.layout is not None:
        metadata, state, missing, _ = read_released(spec.file, spec.layout, model, kwargs)
    else:
        chans = {} if wanted.in_chans == RGB or "in_chans" in kwargs else {"in_chans": wanted.in_chans}
        metadata, state = read_timm_file(spec.path, model, {**kwargs, **chans})
    loaded = rebuild(metadata, state, spec.file, wanted.changes, wanted.image_size, from_file=False)
    return loaded._replace(missing_keys=[*loaded.missing_keys, *missing])


def _new(model: nn.Module | str | None, setting: str, wanted: _Wanted) -> Loaded:
    """Initialise weights as in pre-training, or as timm does without ``image_size``; modules keep theirs."""
    image_size, in_chans = wanted.image_size, wanted.in_chans
    if not model:
        raise UsageError(
            f"{wanted.group}model is missing: with {setting} = none, give the name of a backbone"
        )
    if isinstance(model, nn.Module):
        if image_size is None:
            raise UsageError("image_size is missing: a module does not state its image size")
        metadata = _unknown(name_of(model), in_chans)
        return Loaded(model, name_of(model), {}, metadata, as_size(image_size), [], [])
    check_model_name(model)
    kwargs = changed(wanted.changes, model, wanted.model_kwargs)
    metadata = _unknown(model, in_chans)
    if image_size is None:  # the model's default, even if not a multiple of the stride
        size = own_size(without_memory(partial(create, model, kwargs)), kwargs)
        kwargs = fit_kwargs(model, kwargs, size, in_chans)
        return Loaded(create(model, kwargs), model, kwargs, metadata, size, [], [])
    # Built as an encoder, so that position embeddings are initialised as in pre-training.
    encoder = build_encoder(model, as_size(image_size), in_chans, kwargs)
    return Loaded(encoder.model, model, encoder.model_kwargs, metadata, encoder.image_size, [], [])


def _unknown(name: str, in_chans: int) -> dict[str, Any]:
    """Return the metadata of weights that were not trained on images."""
    return {"model": name, "in_chans": in_chans, "mean": None, "std": None}


def _parts(keys: list[str], model: nn.Module) -> list[str]:
    """Shorten ``keys`` to the names of the largest modules of which they contain every key."""
    wanted = set(keys)
    known = list(model.state_dict())
    parts: dict[str, None] = {}
    for key in keys:
        names = key.split(".")
        prefixes = [".".join(names[:length]) for length in range(1, len(names))]
        whole = (p for p in prefixes if all(k in wanted for k in known if k.startswith(f"{p}.")))
        parts[next(whole, key)] = None
    return list(parts)
