"""AdamW as in the paper, and an optimiser step that skips non-finite gradients."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from fastmim.train.settings import OptimConfig

LR_REFERENCE_BATCH = 256


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """Scale the learning rate linearly with the batch size: base_lr * batch_size / 256."""
    return base_lr * batch_size / LR_REFERENCE_BATCH


def build_adamw(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters in two groups: with weight decay, and 1-D ones without."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [(name, p) for name, p in named if _decays(p)], "weight_decay": config.weight_decay},
        {"params": [(name, p) for name, p in named if not _decays(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.base_lr, betas=config.betas, fused=True)


def use_kernel(optimizer: torch.optim.AdamW, kernel: Literal["fused", "foreach"]) -> None:
    """Switch AdamW to one fused kernel, or to tensor by tensor (foreach), from the next step on."""
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = kernel == "fused", kernel == "foreach"


def resample_state(
    old: torch.optim.AdamW, new: torch.optim.AdamW, resample: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Copy the state of ``old`` to ``new``, whose parameters may have other shapes.

    Args:
        resample: resamples tensors, keyed by parameter name, to the new shapes of the parameters.
    """
    states = dict(_named_states(old))
    means = {
        key: resample({name: state[key] for name, state in states.items()})
        for key in ("exp_avg", "exp_avg_sq")
    }
    for group in new.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if name in states:
                new.state[parameter] = {
                    "step": states[name]["step"].clone(),
                    "exp_avg": means["exp_avg"][name].to(parameter),
                    # Bicubic resampling overshoots, but a mean of squares cannot be negative.
                    "exp_avg_sq": means["exp_avg_sq"][name].to(parameter).clamp_(min=0),
                }


def _named_states(optimizer: torch.optim.AdamW) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if parameter in optimizer.state:
                yield name, optimizer.state[parameter]


def _decays(parameter: Tensor) -> bool:
    """Return whether weight decay applies: not to biases, norms and tokens (at most one side above 1)."""
    return sum(side > 1 for side in parameter.shape) > 1


def guarded_step(optimizer: torch.optim.AdamW, lr: float, clip_norm: float | None) -> tuple[Tensor, Tensor]:
    """Clip the gradients and take an optimiser step, unless a gradient is not finite.

    The decision is made on the device, and the fused kernel does not wait for it.

    Args:
        lr: learning rate; that of a parameter group is ``lr`` times its ``lr_scale``, if it has one.

    Returns:
        Norm of the gradient before clipping, and whether the step was taken (1.0) or skipped (0.0).
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    finite = torch.isfinite(norm).float()
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    if optimizer.param_groups[0]["fused"]:
        # The fused kernel changes nothing if found_inf is 1 (its contract with loss scaling).
        optimizer.found_inf = 1 - finite  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.step()
    elif finite.item():  # other kernels have no such switch
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, finite
