"""Layer-wise learning rate decay: AdamW parameter groups from the last layer to the first."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from fastmim.encoders.levels import parameter_levels
from fastmim.train.settings import OptimConfig


class _Levelled:
    """A model as timm's parameter groups see it, with levels of ours."""

    def __init__(self, model: nn.Module, levels: dict[str, int]) -> None:
        self.named_parameters = model.named_parameters
        self._levels = levels

    def group_matcher(self, coarse: bool) -> Callable[[str], int]:
        return lambda name: self._levels.get(name, 0)  # what does not train has no level


def layer_decay_groups(
    model: nn.Module, layer_decay: float, optim: OptimConfig, blocks: int = 1
) -> list[dict[str, Any]]:
    """Parameters by layer, the last ones with the full learning rate (paper: appendix A.3.2, table 12).

    A layer is a block (`encoders.levels`), or so many ``blocks`` in a row; of a model in which none can be
    told, twelve tensors in a row count as one, as timm has it.
    """
    undecayed: Iterable[str] = getattr(model, "no_weight_decay", set)()
    levels = parameter_levels(model, blocks)
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        model if levels is None else cast(nn.Module, _Levelled(model, levels)),
        optim.weight_decay,
        no_weight_decay_list=tuple(undecayed),
        layer_decay=layer_decay,
    )
    return groups


def levels_line(groups: list[dict[str, Any]], layer_decay: float) -> str:
    """How learning rates are spread over the layers, in words."""
    scales = sorted({group["lr_scale"] for group in groups})
    if len(scales) == 1:
        return "all layers learn equally fast"
    return (
        f"layer decay {layer_decay:g}: {len(scales)} levels, rates from {scales[0]:.2g} to 1 of the full one"
    )


def build_layered_adamw(
    model: nn.Module, layer_decay: float, optim: OptimConfig, blocks: int = 1
) -> torch.optim.AdamW:
    """AdamW whose groups carry ``lr_scale``, which `train.optim.guarded_step` heeds."""
    groups = layer_decay_groups(model, layer_decay, optim, blocks)
    return torch.optim.AdamW(groups, lr=optim.base_lr, betas=optim.betas, fused=True)
