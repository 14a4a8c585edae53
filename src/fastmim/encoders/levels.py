"""Group a model's parameters by depth, block by block, for layer-wise learning-rate decay.

timm's `group_matcher` counts whole stages for some families, so that the same decay factor would apply to six
levels in one model and to fifty in another of the same depth.
"""

from collections.abc import Iterator
from typing import Any

from timm.models import group_parameters
from torch import nn

LISTS = (nn.ModuleList, nn.Sequential)
MOST_STAGES = 8
Walk = Iterator[tuple[str, nn.Module, bool]]  # prefix of the names, module, whether the module is a block


def parameter_levels(model: nn.Module, blocks: int = 1) -> dict[str, int] | None:
    """Level of each trainable parameter, from 0 for the stem to the head.

    Levels come from timm's `group_matcher`, or from `block_levels` where that distinguishes more levels. None
    if neither distinguishes more than stem and head.

    Args:
        blocks: consecutive blocks that share a level (see `block_levels`); above 1, timm's are not used.
    """
    found = block_levels(model, blocks)
    if blocks == 1 and hasattr(model, "group_matcher"):
        matcher: Any = model.group_matcher
        timms: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
        if max(timms.values()) >= max(found.values()):
            return {name: timms[name] for name in found}
    return found if max(found.values()) > 1 else None


def block_levels(model: nn.Module, blocks: int = 1) -> dict[str, int]:
    """Level of each trainable parameter: 0 for the stem, one more for each block, the last for the head.

    Blocks are the items of lists of similar modules that contain no such list themselves, or only a small
    one: ``blocks.3``, ``stages.2.blocks.5``, ``layer3.4``. Modules before the first block form the stem; a
    module between two blocks belongs to the later one, as a stage's downsampling does; modules after the last
    block (norms and the classifier) form the head. Lists next to a list of stages, of the same length, are
    parts of the stages.

    Args:
        blocks: consecutive blocks of a list that share a level (ConvNeXt's authors: 3).
    """
    levels: dict[str, int] = {}
    between: list[str] = []
    level = 0
    row, place = "", 0  # the list of the last block, and the block's index in it
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
    """Yield a module and its parts down to the blocks, in the order of registration."""
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
    """Yield parts as `_walk`, where the items of a list of similar modules without such lists are blocks."""
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
    """Yield a module that is not a block, and all its parts."""
    for name, part in module.named_modules():
        yield f"{prefix}{name}." if name else prefix, part, False


def _is_stages(module: nn.Module) -> bool:
    """Whether a module is a short list whose items include several that hold blocks."""
    if not isinstance(module, LISTS):
        return False
    items = list(module.children())
    return len(items) <= MOST_STAGES and sum(map(_holds_blocks, items)) > 1


def _holds_blocks(module: nn.Module) -> bool:
    """Whether a module is a list of similar modules, or most of its parameters are in such a list."""
    if _alike(module):
        return True
    most = _size(module) / 2
    return any(_holds_blocks(child) and _size(child) > most for child in module.children())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _has_parts(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None and next(module.children(), None) is not None


def _alike(module: nn.Module) -> bool:
    """Whether a module is a list with at least two modules of one class that have parts."""
    if not isinstance(module, LISTS):
        return False
    kinds = [type(item) for item in module.children() if _has_parts(item)]
    return len(set(kinds)) < len(kinds)
