"""A simulated accelerator: it computes on the CPU, refuses tensors of two devices and notes each host sync.

A graphics card fails where a constant was left on the CPU, and stalls wherever the host asks for a value. A
test on a CPU sees neither. Here tensors of the device ``simulated`` carry CPU tensors, which every operation
computes with, so results equal those of the CPU; what crosses the border between host and device is noted.

Not simulated: kernels, streams, memory and their limits, pinned memory, generators of the device. Autocast is
accepted and changes no type. Checkpoints hold CPU tensors, as if read with ``map_location="cpu"``.

It is PyTorch's backend for devices from outside (PrivateUse1), written in Python. A process can register it
once and for all, and not beside other tests: where a backward pass has run before, autograd has no queue for
the device; once it is registered, processes forked later can run no backward pass, and ``torch.accelerator``
is the simulated one. So its tests lie in files ``*_on_device.py``, which pytest does not collect by itself;
``test_simulated_device.py`` runs them in a process of their own.
"""

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

NAME = "simulated"
ON_DEVICE = "_on_device.py"  # what names of files end with whose tests use it
CPU = torch.device("cpu")
SOURCES = tuple(str(Path(__file__).parents[1] / part) for part in ("src", "tests"))

# The host waits for the values, or for a shape that follows from them.
READING = {
    "_local_scalar_dense",  # .item(), float(), bool(), `if tensor:`
    "_unique2",
    "allclose",
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
COPYING = {"_to_copy", "copy_"}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}


class Crossing(NamedTuple):
    """Something that went from device to host or back."""

    operation: str
    to_host: bool
    waits: bool
    """Whether the host waits until the device has done all that was asked of it before."""
    place: str
    """The line of this project that asked for it; none in a backward pass."""


_watching: list[list[Crossing]] = []
_libraries: list[Any] = []


@contextlib.contextmanager
def watched() -> Iterator[list[Crossing]]:
    """Note what crosses between host and device while the block runs."""
    seen: list[Crossing] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.pop()


class DeviceTensor(Tensor):
    """A tensor of the device; ``raw`` are its values, on the CPU."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "DeviceTensor":
        tensor: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.raw = raw
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.raw!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return cast(Any, self.cpu()).__reduce_ex__(protocol)


def install() -> torch.device:
    """Register the device with PyTorch, once a process."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_DeviceModule())
        # Both last as long as they are referred to; PyTorch has no types for them.
        library, copying = (cast(Any, torch.library.Library)(part, "IMPL") for part in ("_", "aten"))
        _libraries.extend([library, copying])
        library.fallback(_fallback, "PrivateUse1")
        library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        # torch.tensor(..., device=...) passes by __torch_dispatch__, and a fallback cannot have its tensors.
        copying.impl("copy_", partial(_fallback, torch.ops.aten.copy_.default), "PrivateUse1")
    return torch.device(NAME, 0)


class _DeviceModule:
    """What PyTorch looks for as ``torch.simulated``."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Nothing: numbers are drawn by the CPU's generator."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _fallback(func: OpOverload, *args: Any, **kwargs: Any) -> Any:
    return _compute(func, args, kwargs)


def _compute(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU, and give back tensors of the device."""
    name = func._schema.name.removeprefix("aten::")
    flat, form = pytree.tree_flatten((args, kwargs))
    ours = [value for value in flat if isinstance(value, DeviceTensor)]
    if name in COPYING:
        _note_copy(name, args, kwargs, bool(ours))
    elif ours:
        _note_reading(name, args, kwargs)
        _refuse_mixed(name, args, flat)
    raw = [_raw(value) for value in flat]
    raw_args, raw_kwargs = pytree.tree_unflatten(raw, form)
    raw_kwargs.pop("pin_memory", None)
    results = func(*raw_args, **raw_kwargs)
    if name == "copy_" and not isinstance(args[0], DeviceTensor):
        return args[0]
    if name == "_to_copy" and kwargs.get("device") is not None and torch.device(kwargs["device"]) == CPU:
        return results
    # What an operation changed in place is the tensor that it was given.
    given = {id(value.raw): value for value in ours}
    return pytree.tree_map_only(
        Tensor,
        lambda result: given[id(result)] if id(result) in given else DeviceTensor(result),
        results,
    )


def _raw(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.raw
    return CPU if isinstance(value, torch.device) and value.type == NAME else value


def _note_copy(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], from_device: bool) -> None:
    if name == "copy_":
        target, source = (isinstance(tensor, DeviceTensor) for tensor in args[:2])
        queued = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    else:
        device = kwargs.get("device")
        source, target = from_device, from_device if device is None else torch.device(device).type == NAME
        queued = kwargs.get("non_blocking", False)
    if source != target:
        _note(name, to_host=source, waits=not queued)


def _note_reading(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if name in INDEXING:
        indices = [index for index in pytree.tree_leaves(args[1]) if isinstance(index, Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            _note(name, to_host=True, waits=True)
        if not all(isinstance(index, DeviceTensor) for index in indices):
            _note(name, to_host=False, waits=True)
    elif name in READING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _note(name, to_host=True, waits=True)


def _refuse_mixed(name: str, args: tuple[Any, ...], flat: list[Any]) -> None:
    """Raise RuntimeError where CPU tensors are among those of the device, but for what CUDA allows.

    That is: numbers (but not as a result, nor in lists of tensors), and indices.
    """
    strict = name.startswith(("_foreach", "_fused")) or (
        name.endswith("_") and not isinstance(args[0], DeviceTensor)
    )
    indices = {id(value) for value in pytree.tree_leaves(args[1])} if name in INDEXING else set()
    for value in flat:
        on_cpu = isinstance(value, Tensor) and not isinstance(value, DeviceTensor)
        if on_cpu and id(value) not in indices and (strict or value.ndim):
            raise RuntimeError(
                f"expected all tensors to be on the same device: {name} got one of shape "
                f"{tuple(value.shape)} on the CPU beside those of the device ({_place()})"
            )


def _note(operation: str, to_host: bool, waits: bool) -> None:
    for seen in _watching:
        seen.append(Crossing(operation, to_host, waits, _place()))


def _place() -> str:
    """The innermost line of this project that is being computed."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and file.startswith(SOURCES):
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
