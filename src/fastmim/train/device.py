"""What the device can do, seen by trying it: bfloat16, and how many images it holds at once."""

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

CPU_MICRO_BATCH = 64  # larger ones are no faster on a CPU and cost memory
MEMORY_SHARE = 0.6  # of what is free, for activations; the rest is for gradients, buffers and surprises
WORTH_IT = 1.2  # bfloat16 must be at least this much faster


@dataclass(frozen=True)
class _Gain:
    """What is remembered of bfloat16."""

    times: Finite


def choose_precision(device: torch.device) -> Literal["bf16-mixed", "32-true"]:
    """bf16-mixed where the device multiplies matrices faster in bfloat16, else 32-true."""
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if device.type != "cpu":
        return "32-true"
    kept = cached_on_disk("bfloat16", device_fingerprint(device), lambda: {"times": _bfloat16_gain()}, _Gain)
    times_faster: float = kept["times"]
    return "bf16-mixed" if times_faster > WORTH_IT else "32-true"


def _bfloat16_gain() -> float:
    """How many times faster than in float32 this CPU multiplies matrices."""
    matrices = {dtype: torch.ones(512, 512, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in matrices}
    for _ in range(12):  # in turns, the shortest counts: something else may be running
        for dtype, matrix in matrices.items():
            start = time.perf_counter()
            matrix @ matrix
            seconds[dtype].append(time.perf_counter() - start)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def saved_bytes(module: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass of ``forward()``, weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # alive until counted: a freed storage's address may be given out again
    total = sum(kept.values())
    del result
    return total


def fit_micro_batch(
    fabric: Fabric, module: nn.Module, forward: Callable[[], Any], count: int, batch_size: int
) -> int:
    """Images that a process takes at a time, of the ``batch_size`` that all take a step.

    Args:
        forward: runs ``module`` on ``count`` images, which shows how much autograd keeps for them.
    """
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    module.eval()  # the running statistics of batch norms are none of this trial's business
    with fabric.autocast():
        per_image = saved_bytes(module, forward) // count
    module.train()
    share = batch_size // fabric.world_size
    fitting = choose_micro_batch(share, per_image, 3 * weights, fabric.device)
    return max(fitting, min(2, share)) if has_batch_norm(module) else fitting


def choose_micro_batch(share: int, bytes_per_image: int, bytes_for_state: int, device: torch.device) -> int:
    """Images that one process takes at a time, of the ``share`` it has of each batch.

    Args:
        share: this process's images a step.
        bytes_per_image: activations kept for one image (see `saved_bytes`).
        bytes_for_state: gradients and optimiser state still to be allocated.
        device: where they must fit.
    """
    budget = MEMORY_SHARE * free_bytes(device) - bytes_for_state
    most = max(1, int(budget // max(bytes_per_image, 1)))
    if device.type == "cpu":
        most = min(most, CPU_MICRO_BATCH)
    parts = -(-share // min(most, share))
    return -(-share // parts)
