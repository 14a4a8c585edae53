"""Find the layout, stride, width and unused parameters of a backbone's features by running it.

Models run on the meta device where possible, which needs neither memory nor arithmetic.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastmim.encoders.registry import MODEL_ERRORS, weightless
from fastmim.errors import UsageError, first_line
from fastmim.system.size import Size

Layout = Literal["tokens", "channels-last", "channels-first"]
Way = Literal["forward_features", "forward", "forward_intermediates"]

MOST_PREFIX_TOKENS = 16


class Features(NamedTuple):
    """Form of a backbone's last features, and the method that computes them."""

    way: Way
    """Name of the model's method that computes the features."""
    layout: Layout
    prefix_tokens: int
    """Number of tokens before those of the map: class token, registers."""
    stride: int
    """Pixels between neighbouring positions of the map."""
    width: int
    """Channels of the map."""
    grid: Size
    """(h, w) of the model's output, smaller than image size / stride after unpadded convolutions."""


class DoesNotRun(UsageError):
    """The model raises an error at this image size."""


def last_features(model: nn.Module, images_BCHW: Tensor, way: Way) -> Any:
    """Output of the model's method ``way`` for images; the last one if there are several."""
    if way == "forward_intermediates":
        output = model.forward_intermediates(  # type: ignore[operator]
            images_BCHW, indices=1, output_fmt="NCHW", intermediates_only=True
        )
    else:
        output = getattr(model, way)(images_BCHW)
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple) and output:
        output = output[-1]
    return output


def probe(model: nn.Module, name: str, image_size: Size, in_chans: int) -> tuple[Features, frozenset[str]]:
    """Find the form of the features at ``image_size``, and the parameters that they do not depend on.

    Raises:
        UsageError: the model does not run at that size, or gives no feature map.
    """
    try:
        return _seen_and_unused(weightless(model), name, image_size, in_chans)
    except (*MODEL_ERRORS, UsageError):  # some models read values, which the meta device does not have
        return _seen_and_unused(model, name, image_size, in_chans)


@torch.enable_grad()
def _seen_and_unused(
    model: nn.Module, name: str, image_size: Size, in_chans: int
) -> tuple[Features, frozenset[str]]:
    was_training = model.training
    model.eval()
    try:
        features, output = look_at(model, name, image_size, in_chans)
        named = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
        if not output.requires_grad:
            raise UsageError(f"model = {name}: its features depend on no trainable parameter")
        gradients = torch.autograd.grad(output.sum(), list(named.values()), allow_unused=True)
    finally:
        model.train(was_training)
    return features, frozenset(n for n, gradient in zip(named, gradients, strict=True) if gradient is None)


def look_at(model: nn.Module, name: str, image_size: Size, in_chans: int) -> tuple[Features, Tensor]:
    """Run a model by the first of its methods that gives a map; return the form of the map and its values.

    Raises:
        UsageError: the model does not run at that size, or no method gives a map.
    """
    has_features = hasattr(model, "forward_features")
    ways: list[Way] = ["forward_features" if has_features else "forward"]
    if has_features and hasattr(model, "forward_intermediates"):
        ways.append("forward_intermediates")
    seen = ""
    for way in ways:
        output = _run(model, name, image_size, in_chans, way)
        form = _form_of(model, name, output, image_size, in_chans, way)
        if form is not None:
            return form, output
        what = (
            f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        )
        seen = seen or what
    raise UsageError(
        f"{name} has no feature map on images of {image_size[0]}x{image_size[1]}: its features are {seen}"
    )


def _run(model: nn.Module, name: str, image_size: Size, in_chans: int, way: Way) -> Any:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        return last_features(model, torch.zeros(1, in_chans, *image_size, device=device), way)
    except MODEL_ERRORS as error:
        raise DoesNotRun(
            f"{name} does not run on images of {image_size[0]}x{image_size[1]}: {first_line(error)}"
        ) from error


def _form_of(
    model: nn.Module, name: str, output: Any, image_size: Size, in_chans: int, way: Way
) -> Features | None:
    """Form of an output; None if it is not a map."""
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        return None
    if output.ndim == 3:
        return _form_of_tokens(model, name, output, image_size, way)
    layout = _layout_of(model, output) if way != "forward_intermediates" else "channels-first"
    rows = 2 if layout == "channels-first" else 1
    grid = (output.shape[rows], output.shape[rows + 1])
    stride = _stride_of(model, name, grid, rows, image_size, in_chans, way)
    _check_multiple(name, image_size, stride)
    return Features(way, layout, 0, stride, output.shape[1 if rows == 2 else 3], grid)


def _form_of_tokens(
    model: nn.Module, name: str, output: Tensor, image_size: Size, way: Way
) -> Features | None:
    """Form of tokens (1, N, D): a grid after prefix tokens; the model or the grid determines their number."""
    height, width = image_size
    side = patch_side(model)
    told = getattr(model, "num_prefix_tokens", None)
    if side and told is not None:
        _check_multiple(name, image_size, side)
    reduction = _reduction(model)
    for prefix in range(MOST_PREFIX_TOKENS + 1) if told is None else (int(told),):
        tokens = output.shape[1] - prefix
        if tokens < 2:
            break  # a single token is not a map
        if reduction and -(-height // reduction) * -(-width // reduction) == tokens:
            _check_multiple(name, image_size, reduction)
        exact = math.sqrt(height * width / tokens)
        if exact.is_integer() and exact > 1 and not (height % exact or width % exact):
            stride = int(exact)
            grid = (height // stride, width // stride)
            return Features(way, "tokens", prefix, stride, output.shape[2], grid)
    return None


def _layout_of(model: nn.Module, output: Tensor) -> Layout:
    if getattr(model, "output_fmt", None) == "NHWC":
        return "channels-last"
    width = getattr(model, "num_features", output.shape[1])
    last = output.shape[1] != width and output.shape[3] == width
    return "channels-last" if last else "channels-first"


def _stride_of(
    model: nn.Module, name: str, grid: Size, rows: int, image_size: Size, in_chans: int, way: Way
) -> int:
    """Infer the stride from the growth of the map at multiples of the image size, if the model runs there.

    A single size is ambiguous because the size of the map is rounded.
    """
    told = _reduction(model)
    if told and all(-(-side // told) == places for side, places in zip(image_size, grid, strict=True)):
        return int(told)
    stride = 0
    for times in (2, 4, 8):
        try:
            larger = _run(model, name, (times * image_size[0], times * image_size[1]), in_chans, way)
        except UsageError:
            break
        more = int(larger.shape[rows]) - grid[0]
        if more <= 0:
            break  # a map of the same size for every image
        stride = round((times - 1) * image_size[0] / more)
        if stride * grid[0] == image_size[0]:
            break  # the stride is exact
    return stride or _dividing_stride(image_size, grid)


def _reduction(model: nn.Module) -> int | None:
    """Stride that a model states in its ``feature_info``, which may be wrong."""
    info = getattr(model, "feature_info", None)
    return info[-1].get("reduction") if isinstance(info, list) and info else None


def _dividing_stride(image_size: Size, grid: Size) -> int:
    """Largest stride that divides the image and is at most image size / grid."""
    most = max(1, image_size[0] // grid[0])
    common = math.gcd(*image_size)
    return max(stride for stride in range(1, most + 1) if common % stride == 0)


def _check_multiple(name: str, image_size: Size, stride: int) -> None:
    if image_size[0] % stride or image_size[1] % stride:
        side = next(side for side in image_size if side % stride)
        below = max(side // stride, 1) * stride
        raise UsageError(
            f"image_size = {image_size[0]}x{image_size[1]} is not a multiple of the stride of {name}, "
            f"{stride} pixels; {below} or {below + stride} is"
        )


def patch_side(model: nn.Module) -> int | None:
    """Side of a patch that a token model states, in pixels; None if it states none."""
    side = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = side[0] if isinstance(side, tuple | list) else side
    return side if isinstance(side, int) else None
