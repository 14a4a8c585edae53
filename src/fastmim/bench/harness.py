"""Set up the training step of a run on random images, for several benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fastmim.config import PretrainConfig
from fastmim.encoders.probe import last_features
from fastmim.methods.base import Method
from fastmim.pretraining import build_method
from fastmim.pretraining.build import kernel_facts, use_kernels
from fastmim.train.autotune import StepToTune, autotune
from fastmim.train.distributed import build_fabric
from fastmim.train.kernels import KernelChoices
from fastmim.train.optim import build_adamw, guarded_step, scaled_lr

FIRST_STEPS = 3  # not measured: the process allocates the memory that it then keeps


@dataclass(frozen=True)
class Bench:
    """A method, its optimiser and a batch, on the device and in the precision of a run."""

    fabric: Fabric
    config: PretrainConfig
    method: Method
    optimizer: torch.optim.AdamW
    images: Tensor
    mask: Tensor
    kernels: KernelChoices

    def step(self) -> None:
        """Run a training step: forward, loss, backward, AdamW."""
        with self.fabric.autocast():
            loss = self.method(self.images, self.mask).loss
        loss.backward()
        optim = self.config.optim
        guarded_step(self.optimizer, scaled_lr(optim.base_lr, len(self.images)), optim.clip_norm)

    def forward(self, count: int) -> Any:
        return self.method(self.images[:count], self.mask[:count])

    def bare(self) -> Callable[[], None]:
        """Return a step of the backbone alone, forward and backward, with the same images and kernels."""
        encoder = self.method.encoder
        model: nn.Module = encoder.model

        def step() -> None:
            with self.fabric.autocast():
                features = last_features(model, self.images, encoder.way)
                loss = features.float().square().mean()
            loss.backward()
            model.zero_grad(set_to_none=True)

        return step


def prepare(config: PretrainConfig) -> Bench:
    """Build the training step of ``config`` with noise as images."""
    fabric = build_fabric(config.accelerator, 1, 1, config.precision)
    fabric.launch()
    method = build_method(config).to(fabric.device)
    images = torch.randn(
        config.batch_size, config.in_chans, *config.size, generator=torch.Generator().manual_seed(0)
    ).to(fabric.device)
    mask = method.draw_mask(torch.Generator().manual_seed(0), len(images), config.size).to(fabric.device)
    kernels = autotune(
        fabric,
        config.kernels,
        StepToTune(
            method,
            lambda count: (images[:count], mask[:count]),
            len(images),
            0,
            kernel_facts(config, method, config.size),
        ),
    )
    optimizer = build_adamw(method, config.optim)
    use_kernels(config, method, optimizer, kernels)
    method.train()
    return Bench(fabric, config, method, optimizer, images, mask, kernels)
