"""One mask for all images of a batch, whose values the host remembers after sending it to a device.

A plan that depends on a mask's values is made on the host. Reading the mask back from the device for it would
make the host wait until all earlier steps are done.
"""

from typing import Any

import torch
from torch import Tensor

from fastmim.system.size import Size

ATTRIBUTE = "_fastmim_on_host"  # of the tensor on the device: its values, and its version at that time


class SharedMask(Tensor):
    """A mask (B, h, w) on the CPU, the same for all images.

    On another device it becomes a plain tensor. `on_host` finds the values of that tensor, and of its slices
    along the batch, on the CPU.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if func in (Tensor.__getitem__, Tensor.pin_memory):
                return result.as_subclass(cls) if result.ndim == 3 else result
            if func is not Tensor.to:
                return result
            mask: Tensor = args[0].as_subclass(Tensor)
            if isinstance(result, cls):  # it was there already
                return mask
            sent = result.device != mask.device and not result.is_inference()  # those have no version
            if sent and len(mask) and bool((mask == mask[:1]).all()):
                setattr(result, ATTRIBUTE, (mask[0].clone(), result._version))
            return result


def on_host(mask_Bhw: Tensor) -> Tensor | None:
    """Return the mask (h, w) of all images on the CPU, or None where only the device knows it."""
    whole = mask_Bhw if mask_Bhw._base is None else mask_Bhw._base
    mask_hw, version = getattr(whole, ATTRIBUTE, (None, None))
    unchanged = mask_hw is not None and mask_Bhw._version == version
    return mask_hw if unchanged and _form(mask_Bhw) == _form(whole) else None


def _form(mask_Bhw: Tensor) -> tuple[Size, Size]:
    """Shape and strides but for the batch: a part of a batch has those of the whole."""
    (_, h, w), (_, down, right) = mask_Bhw.shape, mask_Bhw.stride()
    return (h, w), (down, right)
