"""Equivalent kernels for a training step: attention, memory format, torch.compile, AdamW, CPU threads.

They give the same numbers up to rounding, so a checkpoint stores the choice and a resumed run keeps it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fastmim.errors import UsageError
from fastmim.train.settings import KernelConfig

Attention = Literal["fused", "plain"]
MemoryFormat = Literal["contiguous", "channels-last"]
Compile = Literal["none", "target", "model", "cudagraphs"]
OptimizerKernel = Literal["fused", "foreach"]

COMPILES = "the first step compiles, which can take minutes"


@dataclass(frozen=True)
class KernelChoices:
    """The chosen kernels. Checkpoints store them as a mapping."""

    attention: Attention = "fused"
    memory_format: MemoryFormat = "contiguous"
    compile: Compile = "none"
    optimizer: OptimizerKernel = "fused"
    threads: int = 0
    """CPU threads; 0: PyTorch's default."""

    def __str__(self) -> str:
        compiled = "" if self.compile == "none" else f", {self.compile} compiled"
        threads = f", {self.threads} thread{'s'[: self.threads - 1]}" if self.threads else ""
        return f"{self.attention} attention, {self.memory_format}{compiled}, {self.optimizer} AdamW{threads}"


def use_attention(module: nn.Module, attention: Attention) -> None:
    """Set the kernel of timm's attention modules, which look it up at each call."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = attention == "fused"  # type: ignore[assignment]


def apply(module: nn.Module, kernels: KernelChoices) -> None:
    """Apply the chosen kernels to ``module``. Compilation starts at its first call.

    The number of threads is set for the whole process; `own_threads` restores it.
    """
    if kernels.threads:
        torch.set_num_threads(kernels.threads)
    use_attention(module, kernels.attention)
    last = kernels.memory_format == "channels-last"
    module.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    module._compiled_call_impl = None
    if kernels.compile == "model":
        module.compile()
    elif kernels.compile == "cudagraphs":
        module.compile(mode="reduce-overhead")


@contextmanager
def own_threads() -> Iterator[int]:
    """Yield this process's number of threads, and restore it after the block."""
    before = torch.get_num_threads()
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def check_kernels(config: KernelConfig, device: torch.device) -> None:
    """Raise UsageError if ``device`` does not support the kernels that ``config`` requests."""
    if config.compile == "cudagraphs" and device.type != "cuda":
        raise UsageError(f"kernels.compile = cudagraphs needs a CUDA device, this one is {device.type}")


def checkpoint_activations(model: nn.Module, name: str) -> None:
    """Make each block of ``model`` keep only its input and recompute activations in the backward pass.

    Args:
        name: name of the model, for the error message.

    Raises:
        UsageError: the model does not support activation checkpointing.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"activation_checkpointing: {name} has no working set_grad_checkpointing, unlike most of timm's "
            "models; a smaller micro_batch also needs less memory"
        ) from error
