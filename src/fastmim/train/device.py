"""Measure a device's capabilities: the speed of bfloat16, and how many images fit in memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fastmim.encoders.batch_size import has_batch_norm
from fastmim.system.cache import cached_on_disk
from fastmim.system.documents import Finite
from fastmim.system.hardware import device_fingerprint, free_bytes

CPU_MICRO_BATCH = 64  # larger ones are not faster on a CPU and need more memory
MEMORY_SHARE = 0.6  # of free memory, for activations; the rest is for gradients, buffers and a margin
WORTH_IT = 1.2  # bfloat16 must be at least this much faster


@dataclass(frozen=True)
class _Gain:
    """Cached speed-up of bfloat16."""

    times: Finite


def choose_precision(device: torch.device) -> Literal["bf16-mixed", "32-true"]:
    """Return bf16-mixed if the device multiplies matrices faster in bfloat16, else 32-true."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if device.type != "cpu":
        return "32-true"
    kept = cached_on_disk("bfloat16", device_fingerprint(device), lambda: {"times": _bfloat16_gain()}, _Gain)
    times_faster: float = kept["times"]
    return "bf16-mixed" if times_faster > WORTH_IT else "32-true"


def _bfloat16_gain() -> float:
    """Measure how many times faster this CPU multiplies matrices in bfloat16 than in float32."""
    matrices = {dtype: torch.ones(512, 512, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in matrices}
    for _ in range(12):  # alternating, and the shortest counts: other programs may be running
        for dtype, matrix in matrices.items():
            start = time.perf_counter()
            matrix @ matrix
            seconds[dtype].append(time.perf_counter() - start)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def saved_bytes(module: nn.Module, forward: Callable[[], Any]) -> int:
    """Return the bytes that autograd keeps for the backward pass of ``forward()``, without weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # kept until counted: the address of a freed storage may be reused
    total = sum(kept.values())
    del result
    return total


def fit_micro_batch(
    fabric: Fabric, module: nn.Module, forward: Callable[[], Any], count: int, batch_size: int
) -> int:
    """Return the largest micro-batch of a process, for steps of ``batch_size`` images over all processes.

    Args:
        forward: runs ``module`` on ``count`` images, to measure the memory that autograd keeps for them.
    """
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    module.eval()  # the forward pass must not update batch norm statistics
    with fabric.autocast():
        per_image = saved_bytes(module, forward) // count
    module.train()
    share = batch_size // fabric.world_size
    fitting = choose_micro_batch(share, per_image, 3 * weights, fabric.device)
    return max(fitting, min(2, share)) if has_batch_norm(module) else fitting


def choose_micro_batch(share: int, bytes_per_image: int, bytes_for_state: int, device: torch.device) -> int:
    """Return the number of images that one process takes at a time.

    Args:
        share: this process's images per step.
        bytes_per_image: activations kept for one image (see `saved_bytes`).
        bytes_for_state: gradients and optimiser state that are still to be allocated.
        device: the device whose memory they must fit.
    """
    budget = MEMORY_SHARE * free_bytes(device) - bytes_for_state
    most = max(1, int(budget // max(bytes_per_image, 1)))
    if device.type == "cpu":
        most = min(most, CPU_MICRO_BATCH)
    parts = -(-share // min(most, share))
    return -(-share // parts)
