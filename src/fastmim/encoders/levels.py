"""A model's parameters by depth, block by block: for learning rates that fall from layer to layer.

timm's own `group_matcher` counts whole stages for some families, so that the same factor would bring six
levels for one model and fifty for another of the same depth.
"""

from collections.abc import Iterator
from typing import Any

from timm.models import group_parameters
from torch import nn

LISTS = (nn.ModuleList, nn.Sequential)
MOST_STAGES = 8
Walk = Iterator[tuple[str, nn.Module, bool]]  # name, module, whether it is a block


def parameter_levels(model: nn.Module, blocks: int = 1) -> dict[str, int] | None:
    """The level of each parameter that trains, from the stem's, 0, to the head's.

    As timm's `group_matcher` has it, or by `block_levels` where that tells more of them apart. None where
    neither tells more than stem and head.

    Args:
        blocks: that share a level (see `block_levels`); for more than one, timm is not asked.
    """
    found = block_levels(model, blocks)
    if blocks == 1 and hasattr(model, "group_matcher"):
        matcher: Any = model.group_matcher
        timms: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
        if max(timms.values()) >= max(found.values()):
            return {name: timms[name] for name in found}
    return found if max(found.values()) > 1 else None


def block_levels(model: nn.Module, blocks: int = 1) -> dict[str, int]:
    """The level of each parameter that trains: 0 is the stem, one more for each block, the last is the head.

    Blocks are the items of lists of like modules that hold no such list themselves, or only a small one:
    ``blocks.3``, ``stages.2.blocks.5``, ``layer3.4``. What stands before the first of them is the stem; what
    stands between two belongs to the later one, as a stage's downsampling; what comes after the last, norms
    and the classifier, is the head. Lists beside a list of stages, as long as that, are parts of the stages.

    Args:
        blocks: that share a level, in a row within a list (ConvNeXt's authors: 3).
    """
    levels: dict[str, int] = {}
    between: list[str] = []
    level = 0
    row, place = "", 0  # the list that the last block was of, and how many of it there were
    for prefix, module, is_block in _walk(model, "", root=True):
        names = [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=is_block)]
        if not is_block:
            between += names
            continue
        of = prefix.rstrip(".").rpartition(".")[0]
        row, place = of, place + 1 if of == row else 0
        is_first = level == 0
        level += place % blocks == 0
        levels.update(dict.fromkeys(between, 0 if is_first else level))
        between = []
        levels.update(dict.fromkeys(names, level))
    levels.update(dict.fromkeys(between, level + 1))
    return {name: levels[name] for name, p in model.named_parameters() if p.requires_grad}


def _walk(module: nn.Module, prefix: str, root: bool = False) -> Walk:
    """A module, then its parts in the order in which they are registered, down to the blocks."""
    children = dict(module.named_children())
    if not root and not isinstance(module, LISTS) and sum(map(_holds_blocks, children.values())) > 1:
        yield prefix, module, True  # branches
        return
    yield prefix, module, False
    stages = {name: len(list(child.children())) for name, child in children.items() if _is_stages(child)}
    beside = {
        name: list(child.named_children())
        for name, child in children.items()
        if isinstance(child, LISTS) and name not in stages and len(child) in stages.values()
    }
    for name, child in children.items():
        path = f"{prefix}{name}."
        if name in beside:
            continue
        if name not in stages:
            yield from _walk_list(child, path)
            continue
        yield path, child, False
        for number, (place, stage) in enumerate(child.named_children()):
            for other, items in beside.items():
                if len(items) == stages[name]:
                    yield from _whole(items[number][1], f"{prefix}{other}.{items[number][0]}.")
            yield from _walk_list(stage, f"{path}{place}.")


def _walk_list(module: nn.Module, prefix: str) -> Walk:
    """As `_walk`; the items of a list of like modules that hold no such list are blocks."""
    if not _alike(module) or _is_stages(module):
        yield from _walk(module, prefix)
        return
    yield prefix, module, False
    for name, item in module.named_children():
        if _has_parts(item):
            yield f"{prefix}{name}.", item, True
        else:
            yield from _whole(item, f"{prefix}{name}.")


def _whole(module: nn.Module, prefix: str) -> Walk:
    """A module that is no block, with all its parts."""
    for name, part in module.named_modules():
        yield f"{prefix}{name}." if name else prefix, part, False


def _is_stages(module: nn.Module) -> bool:
    """Whether it is a short list of modules of which several hold blocks."""
    if not isinstance(module, LISTS):
        return False
    items = list(module.children())
    return len(items) <= MOST_STAGES and sum(map(_holds_blocks, items)) > 1


def _holds_blocks(module: nn.Module) -> bool:
    """Whether it is a list of like modules, or such a list holds most of its parameters."""
    if _alike(module):
        return True
    most = _size(module) / 2
    return any(_holds_blocks(child) and _size(child) > most for child in module.children())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _has_parts(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None and next(module.children(), None) is not None


def _alike(module: nn.Module) -> bool:
    """Whether it is a list with at least two modules of one kind that have parts."""
    if not isinstance(module, LISTS):
        return False
    kinds = [type(item) for item in module.children() if _has_parts(item)]
    return len(set(kinds)) < len(kinds)
