"""Layer-wise learning rate decay: AdamW parameter groups from the last layer to the first."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from fastmim.encoders.levels import parameter_levels
from fastmim.train.settings import OptimConfig


class _Levelled:
    """Adapter that presents a model with our layer levels to timm's parameter groups."""

    def __init__(self, model: nn.Module, levels: dict[str, int]) -> None:
        self.named_parameters = model.named_parameters
        self._levels = levels

    def group_matcher(self, coarse: bool) -> Callable[[str], int]:
        return lambda name: self._levels.get(name, 0)  # frozen parameters have no level


def layer_decay_groups(
    model: nn.Module, layer_decay: float, optim: OptimConfig, blocks: int = 1, backbone: str = ""
) -> list[dict[str, Any]]:
    """Group parameters by layer, the last one with the full learning rate (paper: appendix A.3.2, table 12).

    A layer is a block (`encoders.levels`), or ``blocks`` consecutive blocks. In a model without recognisable
    blocks, twelve consecutive tensors count as a layer, as in timm; within another model, such a backbone
    counts as one layer.

    Args:
        backbone: name of the module in ``model`` whose layers count; all others have the full rate. Empty:
            the model itself.
    """
    inner = model.get_submodule(backbone)
    undecayed: Iterable[str] = getattr(inner, "no_weight_decay", set)()
    levels = parameter_levels(inner, blocks)
    if backbone:
        named = [name for name, p in inner.named_parameters() if p.requires_grad]
        levels = dict.fromkeys(named, 0) if levels is None else levels
        head = max(levels.values(), default=0) + 1
        within = {f"{backbone}.{name}": level for name, level in levels.items()}
        levels = {n: within.get(n, head) for n, p in model.named_parameters() if p.requires_grad}
        undecayed = [f"{backbone}.{name}" for name in undecayed]
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        model if levels is None else cast("nn.Module", _Levelled(model, levels)),
        optim.weight_decay,
        no_weight_decay_list=tuple(undecayed),
        layer_decay=layer_decay,
    )
    return groups


def levels_line(groups: list[dict[str, Any]], layer_decay: float) -> str:
    """Describe the learning rates of the layers in words."""
    scales = sorted({group["lr_scale"] for group in groups})
    if len(scales) == 1:
        return "all layers have the same learning rate"
    return f"layer decay {layer_decay:g}: {len(scales)} levels, learning rates scaled by {scales[0]:.2g} to 1"


def build_layered_adamw(
    model: nn.Module, layer_decay: float, optim: OptimConfig, blocks: int = 1, backbone: str = ""
) -> torch.optim.AdamW:
    """Build AdamW with groups that have an ``lr_scale``, which `train.optim.guarded_step` applies."""
    groups = layer_decay_groups(model, layer_decay, optim, blocks, backbone)
    return torch.optim.AdamW(groups, lr=optim.base_lr, betas=optim.betas, fused=True)
