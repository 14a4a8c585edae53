"""Limits on building a backbone: parameters, buffers, and function calls."""

import contextlib
import sys
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fastmim.errors import UsageError

MOST_PARAMETERS = 1 << 36  # of any backbone: 275 GB in float32
MOST_TENSORS = 20_000  # parameter tensors; timm's largest backbone has about 2,000
MOST_DESCRIBED = 5_000  # parameter tensors of a model that a file describes
MOST_BUFFERED = 1 << 28  # buffer elements (indices, masks) of a model that a file describes
MOST_CALLS = 100_000_000  # function calls to build such a model; tiny_vit_21m_512 needs 40 M, others 3 M


class TooLarge(UsageError):
    """A model exceeds the limit of parameters or buffers, or takes too long to build."""


@contextlib.contextmanager
def limited(numbers: int, tensors: int = MOST_TENSORS, buffered: int | None = None) -> Iterator[None]:
    """Context that raises TooLarge as soon as the modules built in it exceed a limit.

    Args:
        numbers: limit of parameters.
        tensors: limit of parameter tensors.
        buffered: limit of elements in buffers; None: buffers are not limited.
    """
    counted = [0, 0, 0]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or isinstance(parameter, UninitializedParameter):
            return
        counted[0] += parameter.numel()
        counted[1] += 1
        if counted[0] > numbers or counted[1] > tensors:
            raise TooLarge(f"it has more than {numbers} parameters, or more than {tensors} tensors of them")

    def count_buffer(module: nn.Module, name: str, buffer: Tensor | None) -> None:
        if buffer is None or buffered is None or isinstance(buffer, UninitializedBuffer):
            return
        counted[2] += buffer.numel()
        if counted[2] > buffered:
            raise TooLarge(f"it has more than {buffered} numbers in buffers, as of large windows or images")

    handles = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count_buffer),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def brief(calls: int = MOST_CALLS) -> Iterator[None]:
    """Context that raises TooLarge after ``calls`` calls of Python and C functions."""
    left = calls

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            sys.setprofile(before)
            raise TooLarge(f"building it takes more than {calls} calls of functions")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
