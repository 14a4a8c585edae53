"""Check names and arguments of backbones, from the user or from a file. This module needs no torch."""

import re
from collections.abc import Iterable

from fastmim.errors import UsageError

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# Arguments of timm.create_model that do not belong to the backbone: those that read weights, and those that
# change the form of the model.
READING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "pretrained_filter_fn"}
    | {"pretrained_custom_load", "checkpoint_path", "cache_dir"}
)
CHANGING = frozenset(
    {"features_only", "feature_cfg", "out_indices", "kwargs_filter", "scriptable", "exportable", "no_jit"}
    | {"device", "dtype"}
)


def is_custom(model_name: str) -> bool:
    """Whether the name is a factory, ``package.module:factory``."""
    return ":" in model_name


def check_loaders(names: Iterable[str], where: str, custom: bool) -> None:
    """Raise UsageError if an argument belongs to timm.create_model instead of the backbone.

    Args:
        names: names of the arguments.
        where: prefix of the error message.
        custom: the arguments are for a custom factory, which may change the form but must not load weights.
    """
    for name in names:
        if name in READING:
            raise UsageError(
                f"{where}{name} is not accepted: a backbone is built without weights; give them as "
                "--encoder timm:NAME or a file"
            )
        if name in CHANGING and not custom:
            raise UsageError(
                f"{where}{name} is not accepted: it is for timm.create_model, not for the backbone"
            )
