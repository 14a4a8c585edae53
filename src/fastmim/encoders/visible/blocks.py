"""Encode a subset of an image's blocks by a pyramid: only a strip of these blocks is computed.

Operations on single positions (norms, MLPs) and convolutions that do not cross blocks (patch embedding,
merging) give the same result on a strip of visible blocks as on an image, so the model's code runs on the
strip. Only operations on neighbours are adapted to the original positions of the blocks: windows are grouped
(`visible.windows`); an overlapping convolution is computed with the blocks at their positions and zeros
between them, which is a submanifold sparse convolution (FCMAE, Woo et al. 2023). Sums over the map (GRN,
global attention) cover the visible blocks.

This module knows no architecture: a model is supported if a strip of all blocks gives the same features as
the image.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmim.encoders.probe import Features, last_features
from fastmim.encoders.registry import MODEL_ERRORS
from fastmim.encoders.visible.windows import Layout, Windows, find_windows, grouped
from fastmim.errors import UsageError, first_line
from fastmim.mim.grids import put_blocks, take_blocks
from fastmim.system.size import Size

MOST_DIFFERENT = 1e-3  # relative to the features' deviation: rounding is well below, a wrong neighbour above


class Strip(NamedTuple):
    """The blocks of a strip."""

    places_BV: Tensor
    """Row-major indices of the blocks."""
    grid: Size
    """(h, w) of all blocks."""
    places_V: Tensor | None = None
    """The indices on the CPU, if they are known there; window attention needs them."""
    layouts: set[Layout] | None = None
    """Layouts of the model's windows, see `Windows`."""


@contextlib.contextmanager
def on_strip(model: nn.Module, strip: Strip) -> Iterator[None]:
    """Context in which the model takes strips of blocks instead of images."""
    places_BV, grid, places_V, layouts = strip

    def spread(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (put_blocks(inputs[0], places_BV, grid),)

    def gather(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        side = output.shape[2] // grid[0]
        if output.shape[2:] != (side * grid[0], side * grid[1]):
            raise ValueError("a convolution gives a map that does not fit the blocks")
        return take_blocks(output, places_BV, side)

    with contextlib.ExitStack() as stack:
        with_windows = find_windows(model)
        windows = Windows(places_BV, grid, places_V, layouts) if with_windows else None
        for module, method in with_windows:
            setattr(module, method, grouped(module, windows))  # type: ignore[arg-type]
            stack.callback(delattr, module, method)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and _overlaps(module):
                stack.callback(module.register_forward_pre_hook(spread).remove)
                stack.callback(module.register_forward_hook(gather).remove)
            if getattr(module, "strict_img_size", False):
                module.strict_img_size = False  # type: ignore[assignment]
                stack.callback(setattr, module, "strict_img_size", True)
        yield


def _overlaps(convolution: nn.Conv2d) -> bool:
    """Whether a convolution reads a position more than once: its kernel extends beyond its stride."""
    sides = zip(convolution.kernel_size, convolution.dilation, convolution.stride, strict=True)
    return any((kernel - 1) * dilation + 1 > stride for kernel, dilation, stride in sides)


def strip_features(model: nn.Module, images_BCHW: Tensor, strip: Strip, features: Features) -> Tensor:
    """Compute the features of the strip's blocks, one per block: (B, V, D)."""
    with on_strip(model, strip):
        blocks = take_blocks(images_BCHW, strip.places_BV, features.stride)
        output = last_features(model, blocks, features.way)
    return _as_tokens(output, features)


def _as_tokens(output: Tensor, features: Features) -> Tensor:
    if features.layout == "channels-first":
        return output.flatten(2).transpose(1, 2)
    return output.flatten(1, 2) if features.layout == "channels-last" else output[:, features.prefix_tokens :]


def check_strips(
    model: nn.Module, name: str, image_size: Size, in_chans: int, features: Features, layouts: set[Layout]
) -> None:
    """Raise UsageError unless the model gives the same features on strips as on images, by a trial run.

    Args:
        model: the backbone.
        name: name of the model, for the error message.
        image_size: (H, W) of the images.
        in_chans: channels of the images.
        features: form of the model's features.
        layouts: the layouts of the model's windows are added to this set.
    """
    grid = (image_size[0] // features.stride, image_size[1] // features.stride)
    places = torch.arange(grid[0] * grid[1]).unsqueeze(0)
    trial = _lively(model)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, in_chans, *image_size, generator=generator)
    reason = (
        f"its features of a block of {features.stride} pixels depend on other blocks in an unsupported way"
    )
    try:
        with torch.no_grad():
            whole = _as_tokens(last_features(trial, images, features.way), features)
            strip = strip_features(trial, images, Strip(places, grid, layouts=layouts), features)
            part = strip_features(trial, images, Strip(places[:, ::2], grid), features)
        same = strip.shape == whole.shape and part.shape == whole[:, ::2].shape
        if same and (strip - whole).abs().max() <= MOST_DIFFERENT * whole.std():
            return
    except UsageError as error:
        reason = str(error)
    except MODEL_ERRORS as error:
        reason = first_line(error)
    raise UsageError(
        f"{name} cannot leave blocks out at {image_size[0]}x{image_size[1]}: {reason}; Swin, Twins, ConvNeXt "
        "and their like can where windows divide the maps, and method = fastmim takes any backbone"
    )


def _lively(model: nn.Module) -> nn.Module:
    """Copy a model and randomise its norms, scales and tables, so that wrong neighbours change the features.

    Many of these parameters are initialised to one or close to zero.
    """
    trial = copy.deepcopy(model).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in trial.modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return trial
