"""Which of several equal ways of computing a step is taken: the fastest on this device, or as told.

They give the same numbers but for rounding, so a checkpoint holds what was chosen and a resumed run keeps it.
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
    """What was chosen. As a mapping it goes into checkpoints."""

    attention: Attention = "fused"
    memory_format: MemoryFormat = "contiguous"
    compile: Compile = "none"
    optimizer: OptimizerKernel = "fused"
    threads: int = 0
    """0: as many as PyTorch takes."""

    def __str__(self) -> str:
        compiled = "" if self.compile == "none" else f", {self.compile} compiled"
        threads = f", {self.threads} thread{'s'[: self.threads - 1]}" if self.threads else ""
        return f"{self.attention} attention, {self.memory_format}{compiled}, {self.optimizer} AdamW{threads}"


def use_attention(module: nn.Module, attention: Attention) -> None:
    """timm's attention modules ask themselves, at each call, which kernel to use."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = attention == "fused"  # type: ignore[assignment]


def apply(module: nn.Module, kernels: KernelChoices) -> None:
    """Have ``module`` computed so. The compiler itself starts at the first call.

    The number of threads is this process's; `own_threads` brings back the one before.
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
    """After the block, this process computes with as many threads as before; gives that number."""
    before = torch.get_num_threads()
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def check_kernels(config: KernelConfig, device: torch.device) -> None:
    """Raise UsageError where ``device`` has not what ``config`` asks for."""
    if config.compile == "cudagraphs" and device.type != "cuda":
        raise UsageError(f"kernels.compile = cudagraphs needs a CUDA device, this one is {device.type}")


def checkpoint_activations(model: nn.Module, name: str) -> None:
    """Have each block of ``model`` keep its input only, and compute the rest again in the backward pass.

    Args:
        name: of the model, for the error.

    Raises:
        UsageError: it cannot do that.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"activation_checkpointing: {name} has no set_grad_checkpointing that works, as most of timm's "
            "models have; a smaller micro_batch needs less memory, too"
        ) from error
