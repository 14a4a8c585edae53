"""Learn one relative position table for all image sizes of a run, interpolated in each forward pass (A.3.2).

Swin's attention adds a bias for each offset within a window. If the window grows with the image, either the
table is resampled once when the image size changes (`resize`), or the table of one fixed window is the
parameter, and each forward pass interpolates it to the image's window. The paper uses the second way, which
is implemented here.
"""

import copy
import math
from typing import Any

from torch import Tensor, nn

from fastmim.encoders.resize import bias_table_at, bias_tables
from fastmim.errors import UsageError
from fastmim.system.size import Size

KEPT = "kept_bias_table"
TABLE_STD = 0.02  # standard deviation of the initial weights, as in timm's Swin
Kept = dict[str, nn.Parameter]
"""Learned tables of a fixed window, by the names of their modules."""


def keep_tables(model: nn.Module, window: int, name: str) -> None:
    """Replace the table of each window attention by a new one of ``window``, drawn by torch's generator.

    Args:
        model: the backbone, changed in place.
        window: side of the window of the learned tables, in tokens.
        name: name of the model, for the error message.

    Raises:
        UsageError: the model has no relative position tables.
    """
    found = _modules_with_tables(model)
    if not found:
        raise UsageError(
            f"encoder.table_window = {window}: {name} has no relative-position tables of windows, "
            "unlike Swin; leave it out"
        )
    side = 2 * window - 1
    kept: Kept = {}
    for place, (table, _) in found.items():
        parameter = nn.Parameter(table.new_empty(side * side, table.shape[1]))
        kept[place] = parameter
        nn.init.trunc_normal_(parameter, std=TABLE_STD)
    put_tables(model, kept)


def kept_tables(model: nn.Module) -> Kept:
    """Return the tables that `keep_tables` created."""
    return {name: m.get_parameter(KEPT) for name, m in model.named_modules() if hasattr(m, KEPT)}


def put_tables(model: nn.Module, kept: Kept) -> None:
    """Make the named modules compute their tables from ``kept``."""
    for name, parameter in kept.items():
        module: Any = model.get_submodule(name)
        window = _square(module.window_size)
        del module.relative_position_bias_table
        module.register_parameter(KEPT, parameter)
        module.kept_from, module.kept_for = ((_side(parameter),) * 2, window)
        module.__class__ = _computing(type(module))


def take_tables(model: nn.Module) -> Kept:
    """Undo `put_tables` and return the kept tables; interpolated tables become parameters again."""
    kept = kept_tables(model)
    for name in kept:
        module: Any = model.get_submodule(name)
        table = module.relative_position_bias_table.detach().clone()
        module.__class__ = type(module).__mro__[1]
        delattr(module, KEPT)
        del module.kept_from, module.kept_for
        module.relative_position_bias_table = nn.Parameter(table)
    return kept


def kept_names(kept: Kept) -> set[str]:
    """Names of the kept tables among the model's parameters."""
    return {f"{name}.{KEPT}" for name in kept}


def with_own_tables(model: nn.Module) -> nn.Module:
    """Return the model without kept tables: itself, or a copy whose tables are those of its windows."""
    if not kept_tables(model):
        return model
    copied = copy.deepcopy(model)
    take_tables(copied)
    return copied


def _modules_with_tables(model: nn.Module) -> dict[str, tuple[Tensor, Size]]:
    """Table and window by module name, for tables with exactly one entry per offset within a window."""
    end = ".relative_position_bias_table"
    return {
        name.removesuffix(end): (table, window)
        for name, (table, window) in bias_tables(model).items()
        if name.endswith(end) and len(table) == (2 * window[0] - 1) * (2 * window[1] - 1)
    }


def _square(window: Any) -> Size:
    return (window, window) if isinstance(window, int) else (int(window[0]), int(window[1]))


def _side(table: Tensor) -> int:
    """Side of the window whose offsets a square table holds."""
    return (math.isqrt(len(table)) + 1) // 2


_KINDS: dict[type[nn.Module], type[nn.Module]] = {}


def _computing(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of ``kind`` that computes its table at each access."""
    if kind in _KINDS:
        return _KINDS[kind]

    def table(self: Any) -> Tensor:
        return bias_table_at(getattr(self, KEPT), self.kept_from, self.kept_for)

    def reduce(self: Any, _: Any) -> Any:
        return _made, (kind,), self.__getstate__()

    members = {
        "relative_position_bias_table": property(table),
        "__reduce_ex__": reduce,
        "__module__": kind.__module__,
    }
    _KINDS[kind] = type(kind.__name__, (kind,), members)
    return _KINDS[kind]


def _made(kind: type[nn.Module]) -> nn.Module:
    """Create an empty module of `_computing`'s subclass; copying and unpickling then set its state."""
    computing = _computing(kind)
    made: nn.Module = computing.__new__(computing)
    return made
