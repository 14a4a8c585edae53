"""Create backbones by name: timm's, this package's, and custom ones as ``package.module:factory``.

This module knows no architecture: the arguments of a model are read from its constructor.
"""

import copy
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastmim.encoders.architectures import cmt, pvt  # noqa: F401  (both register their models with timm)
from fastmim.encoders.limits import MOST_PARAMETERS, TooLarge, limited
from fastmim.encoders.names import FACTORY, check_loaders, is_custom
from fastmim.errors import UsageError, first_line
from fastmim.system.size import Size

# Exceptions that a model raises at an unsupported size or with unsupported arguments.
MODEL_ERRORS = (
    RuntimeError,
    AssertionError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    ZeroDivisionError,
    NotImplementedError,
)


def weights_tag(model_name: str | None) -> str | None:
    """Tag of the pretrained weights in a timm name: ``a1_in1k`` of ``resnet18.a1_in1k``."""
    if model_name is None or is_custom(model_name) or not is_known(model_name):
        return None
    return model_name.partition(".")[2] or None


def is_known(model_name: str) -> bool:
    """Whether timm has the model."""
    return bool(timm.is_model(model_name))


def check_model_name(model_name: str) -> None:
    """Raise UsageError, which suggests similar names, unless the model is known."""
    if is_custom(model_name):
        _factory(model_name)
        return
    if is_known(model_name):
        return
    if "." in model_name:
        raise UsageError(
            f"model = {model_name!r} is not a timm name; pass another module as model= in Python, or "
            "name its package.module:factory"
        )
    close = difflib.get_close_matches(model_name, timm.list_models(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "`fastmim backbones` lists all"
    raise UsageError(f"timm has no model named {model_name!r}; {hint}")


def _factory(model_name: str) -> Callable[..., nn.Module]:
    module, _, name = model_name.partition(":")
    if not FACTORY.fullmatch(model_name):
        raise UsageError(
            f"model = {model_name!r} is not a package.module:factory, and models of a hub or a folder are "
            "not built by name: give the timm name of the backbone, and weights as timm:NAME or a file"
        )
    try:
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing the module can raise anything
        raise UsageError(
            f"model = {model_name!r}: {error}; give package.module:factory, importable from here"
        ) from error
    return factory


def create(model_name: str, model_kwargs: Mapping[str, Any]) -> nn.Module:
    """Create the model with random weights and without a classifier; errors are raised as UsageError."""
    check_loaders(model_kwargs, "model_kwargs: ", is_custom(model_name))
    try:
        with limited(MOST_PARAMETERS):
            if is_custom(model_name):
                return _made(model_name, model_kwargs)
            model: nn.Module = timm.create_model(
                model_name, pretrained=False, **{"num_classes": 0, **model_kwargs}
            )
    except TooLarge:
        raise
    except MODEL_ERRORS as error:
        raise UsageError(
            f"{'' if is_custom(model_name) else 'timm '}cannot build {model_name} with "
            f"{dict(model_kwargs)}: {first_line(error)}"
        ) from error
    return model


def _made(model_name: str, model_kwargs: Mapping[str, Any]) -> nn.Module:
    try:
        model = _factory(model_name)(**model_kwargs)
    except TooLarge:
        raise
    except Exception as error:  # custom code can raise anything
        raise ValueError(first_line(error)) from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"it returns a {type(model).__name__}, not a torch.nn.Module")
    return model


def arguments_of(model_name: str, model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Parameters of the model's constructor by name, including those passed on to base classes."""
    if is_custom(model_name):
        return inspect.signature(_factory(model_name)).parameters
    taken: dict[str, inspect.Parameter] = {}
    for cls in type(model).__mro__:
        if "__init__" not in vars(cls):
            continue
        own = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        taken = {**own, **taken}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return taken


class _NoInitialValues(TorchFunctionMode):
    """Skip the drawing of initial weights on the meta device, which takes most of a model's construction."""

    SKIPPED = frozenset(
        {getattr(Tensor, name) for name in ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_")}
        | {Tensor.fill_, Tensor.zero_, nn.init.uniform_, nn.init.normal_, nn.init.constant_}
        | {nn.init.kaiming_uniform_}
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.SKIPPED and (tensor := args[0] if args else kwargs["tensor"]).is_meta:
            return tensor
        return func(*args, **kwargs)


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Build on the meta device if possible (no memory, no random numbers), otherwise with memory."""
    try:
        with torch.device("meta"), _NoInitialValues():
            return build()
    except TooLarge:
        raise
    except (NotImplementedError, UsageError, RuntimeError):
        with torch.random.fork_rng(devices=[]):
            return build()


def weightless(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device: the same shapes, without memory."""
    stand_ins: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        stand_ins[id(tensor)] = (
            nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(model, stand_ins)


def fit_kwargs(model_name: str, kwargs: dict[str, Any], image_size: Size, in_chans: int) -> dict[str, Any]:
    """Return arguments with which ``create`` builds the model for ``image_size`` directly.

    A model that can change its size is resized once, and the returned arguments are the first candidates that
    give parameters and windows of the same shapes: timm derives window sizes from the image size either when
    it builds or when it resizes a model, but not in both cases.

    Raises:
        UsageError: the arguments do not fit the model or ``in_chans``.
    """
    shape = without_memory(partial(create, model_name, kwargs))
    takes = arguments_of(model_name, shape)
    if not is_custom(model_name):
        kwargs = {"num_classes": 0, **kwargs}
    if kwargs.get("in_chans", in_chans) != in_chans:
        raise UsageError(f"model_kwargs has in_chans = {kwargs['in_chans']}, but in_chans = {in_chans}")
    if in_chans != 3 and (not is_custom(model_name) or "in_chans" in takes):
        kwargs = {**kwargs, "in_chans": in_chans}
    if "drop_path_rate" in takes and takes["drop_path_rate"].default:
        kwargs = {"drop_path_rate": 0.0, **kwargs}  # the paper pre-trains without drop path
    side = _side_or_sides(image_size)
    if "img_size" not in takes or kwargs.get("img_size") == side:
        return kwargs
    sized = {**kwargs, "img_size": side}
    if not hasattr(shape, "set_input_size") or ("window_size" in kwargs and "img_size" not in kwargs):
        return sized
    if "img_size" in kwargs:
        sized.pop("window_size", None)  # belongs to the given img_size
    try:
        resized = without_memory(partial(_resized, model_name, kwargs, image_size))
    except MODEL_ERRORS:
        return sized
    return _kwargs_of(model_name, sized, takes, resized)


def kwargs_at(
    model_name: str, kwargs: dict[str, Any], resized: nn.Module, image_size: Size
) -> dict[str, Any]:
    """Arguments that build ``resized``, which was built by ``kwargs`` and then set to ``image_size``."""
    if "img_size" not in kwargs:
        return kwargs
    sized = {**kwargs, "img_size": _side_or_sides(image_size)}
    sized.pop("window_size", None)
    return _kwargs_of(model_name, sized, arguments_of(model_name, resized), resized)


def _kwargs_of(
    model_name: str, sized: dict[str, Any], takes: Mapping[str, inspect.Parameter], wanted: nn.Module
) -> dict[str, Any]:
    candidates = [sized]
    if "window_size" in takes:
        candidates += [{**sized, "window_size": window} for window in _window_choices(wanted)]
    for candidate in candidates:
        try:
            built = without_memory(partial(create, model_name, candidate))
        except UsageError:
            continue
        if _form(built) == _form(wanted):
            return candidate
    return sized


def _side_or_sides(image_size: Size) -> int | list[int]:
    return image_size[0] if image_size[0] == image_size[1] else list(image_size)


def _resized(model_name: str, kwargs: dict[str, Any], image_size: Size) -> nn.Module:
    model = create(model_name, kwargs)
    model.set_input_size(img_size=image_size)  # type: ignore[operator]
    return model


def _windows(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Window sizes in a model, each with the name of its module."""
    found = ((name, getattr(module, "window_size", None)) for name, module in model.named_modules())
    return [(name, (w, w) if isinstance(w, int) else tuple(w)) for name, w in found if w is not None]


def _window_choices(model: nn.Module) -> list[int | list[int]]:
    """Distinct window sizes of a model, largest first."""
    pairs = sorted({pair for _, pair in _windows(model)}, reverse=True)
    return [pair[0] if len(set(pair)) == 1 else list(pair) for pair in pairs]


def _form(model: nn.Module) -> tuple[object, object]:
    return {name: value.shape for name, value in model.state_dict().items()}, _windows(model)
