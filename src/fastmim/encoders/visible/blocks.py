"""Some of an image's blocks through a pyramid: they are set side by side, and nothing else is computed.

A strip of visible blocks is an image like any other to all that looks at one place alone (norms, MLPs) and to
convolutions that do not cross blocks (patch embedding, merging). The model's own code therefore runs on it.
Only what looks at neighbours is told where the blocks really stand: windows are grouped (`visible.windows`);
an overlapping convolution sees the blocks at their places and zeros between them, which is a submanifold
sparse convolution (FCMAE, Woo et al. 2023). What is summed over the map (GRN, global attention) is what is
visible.

No architecture is known here: a model can do this if a strip of all blocks gives what the image gives.
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

MOST_DIFFERENT = 1e-3  # of the features' spread: rounding stays well below, a wrong neighbour above


class Strip(NamedTuple):
    """The blocks of a strip."""

    places_BV: Tensor
    """Where they stand, row by row."""
    grid: Size
    """(h, w) of all blocks."""
    places_V: Tensor | None = None
    """The places on the CPU, if they are known there; window attention needs them."""
    layouts: set[Layout] | None = None
    """Those of the model's windows, see `Windows`."""


@contextlib.contextmanager
def on_strip(model: nn.Module, strip: Strip) -> Iterator[None]:
    """Within the block, the model takes strips of these blocks."""
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
    """Whether it looks at a place more than once."""
    sides = zip(convolution.kernel_size, convolution.dilation, convolution.stride, strict=True)
    return any((kernel - 1) * dilation + 1 > stride for kernel, dilation, stride in sides)


def strip_features(model: nn.Module, images_BCHW: Tensor, strip: Strip, features: Features) -> Tensor:
    """The features of the strip's blocks, one each: (B, V, D)."""
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
    """Raise UsageError unless blocks can be left out of what the model computes, seen by trying it.

    Args:
        layouts: takes in those of the model's windows.
    """
    grid = (image_size[0] // features.stride, image_size[1] // features.stride)
    places = torch.arange(grid[0] * grid[1]).unsqueeze(0)
    trial = _lively(model)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, in_chans, *image_size, generator=generator)
    reason = (
        f"what it computes for one block of {features.stride} pixels depends on others in a way unknown here"
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
    """A copy in which norms, biases, scales and tables tell: many of them begin as ones or next to zero."""
    trial = copy.deepcopy(model).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in trial.modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return trial
