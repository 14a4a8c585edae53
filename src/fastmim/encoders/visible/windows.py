"""Window attention among some of an image's tokens: windows are grouped (GreenMIM, Huang et al. 2022).

Where most of an image is left out, its windows hold unequal numbers of tokens. They are put together into
groups of one size, and tokens attend within their group, but to those of their own window only (arXiv
2205.13515, section 3.2). Which windows go together is a matter of subset sums (its section 3.3, algorithm 1).

Letters: B batch, K tokens of a strip (`encoders.visible.blocks`), G groups, S places in a group, C width.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmim.errors import UsageError
from fastmim.system.size import Size

ATTENTION = ("qkv", "proj", "num_heads", "scale", "attn_drop", "proj_drop")


class Layout(NamedTuple):
    """Windows on the map of a stage."""

    side: int
    """Tokens along a block's side."""
    window: Size
    """Tokens of a window."""
    shift: Size
    """Tokens by which windows are shifted."""


class Groups(NamedTuple):
    """Which tokens attend to one another; a group's spare places hold a token that nobody asks for."""

    members_GS: Tensor
    """The token at each place."""
    place_K: Tensor
    """Where each token is, among all groups' places."""
    within_GS: Tensor
    """Where in its window each member stands, row by row."""
    together_GSS: Tensor
    """Whether two members are of one window."""


@lru_cache(maxsize=128)
def best_groups(sizes: tuple[int, ...]) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The size of groups, and the windows of each, for which the fewest pairs of places are compared.

    The paper's cost counts the projections of spare places, too. Here tokens are projected before they are
    grouped, so that a spare place costs nothing but its pairs: groups * size^2.

    Args:
        sizes: tokens of each window.
    """
    total, size = sum(sizes), max(sizes)
    best = _filled(sizes, size)
    for larger in range(size + 1, total + 1):
        cost = len(best) * size**2
        if total * larger >= cost:
            break  # more pairs even without a spare place
        if -(-total // larger) * larger**2 < cost:
            groups = _filled(sizes, larger)
            if len(groups) * larger**2 < cost:
                best, size = groups, larger
    return size, best


def _filled(sizes: tuple[int, ...], size: int) -> tuple[tuple[int, ...], ...]:
    """Groups of at most ``size`` tokens: each takes the largest window left, and those that fill it best."""
    left = sorted(range(len(sizes)), key=lambda window: -sizes[window])
    groups = []
    while left:
        first, *others = left
        room = size - sizes[first]
        # Bit n of sums[i]: n tokens are the sum of some of the first i others.
        sums = [1]
        for window in others:
            sums.append((sums[-1] | sums[-1] << sizes[window]) & ((2 << room) - 1))
        filled = sums[-1].bit_length() - 1
        group = [first]
        for window, before in zip(reversed(others), reversed(sums[:-1]), strict=True):
            if not before >> filled & 1:
                group.append(window)
                filled -= sizes[window]
        groups.append(tuple(group))
        left = [window for window in left if window not in group]
    return tuple(groups)


class Windows:
    """The groups of a batch's tokens, for each layout of windows that is asked for.

    Groups are planned on the host, and go to the device in one copy that nobody waits for.

    Args:
        places_BV: where the visible blocks stand, row by row; the same in all images.
        grid: (h, w) of all blocks.
        places_V: the same on the CPU; without it, ``places_BV`` is read back.
        layouts: those that have been asked for before and will be again: planned at the first request. Takes
            in new ones.

    Raises:
        ValueError: the images have different blocks.
    """

    def __init__(
        self,
        places_BV: Tensor,
        grid: Size,
        places_V: Tensor | None = None,
        layouts: set[Layout] | None = None,
    ) -> None:
        if places_V is None:
            places = places_BV.cpu()
            if (places != places[:1]).any():
                raise ValueError("windows can be grouped only where all images of a batch have the same mask")
            places_V = places[0]
        self.places = places_V.numpy()
        self.grid = grid
        self.device = places_BV.device
        self.layouts = set() if layouts is None else layouts
        self.planned: dict[Layout, Groups] = {}

    def groups(self, side: int, window: Size, shift: Size) -> Groups:
        """The groups for windows of that layout, on the device."""
        layout = Layout(side, window, shift)
        if layout not in self.planned:
            self.layouts.add(layout)
            self._plan(sorted(self.layouts - self.planned.keys()))
        return self.planned[layout]

    def _plan(self, layouts: Sequence[Layout]) -> None:
        plans = [_grouped(*self._owners(*layout)) for layout in layouts]
        parts = [part for plan in plans for part in plan]
        packed = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
        if self.device.type == "cuda":
            packed = packed.pin_memory()  # or the copy might wait for the device
        sent = packed.to(self.device, non_blocking=True)
        pieces = iter(torch.split(sent, [part.size for part in parts]))
        for layout, plan in zip(layouts, plans, strict=True):
            members_GS, place_K, within_GS, owner_GS = (next(pieces).view(part.shape) for part in plan)
            together_GSS = owner_GS.unsqueeze(2) == owner_GS.unsqueeze(1)
            self.planned[layout] = Groups(members_GS, place_K, within_GS, together_GSS)

    def _owners(self, side: int, window: Size, shift: Size) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The window that each token of the strip attends in, and its place there.

        Shifting brings what was at the image's start behind its end; such neighbours do not attend to one
        another, so each side of the seam is a window of its own.
        """
        owner = within = np.zeros((1, 1), np.int64)
        inside = np.arange(side)
        for axis, blocks in enumerate(np.divmod(self.places, self.grid[1])):
            length = side * self.grid[axis]
            if length % window[axis]:
                raise UsageError(
                    f"windows of {window[0]}x{window[1]} tokens do not divide a map of "
                    f"{side * self.grid[0]}x{side * self.grid[1]}"
                )
            coordinates = side * blocks.reshape(1, -1, 1) + (
                inside.reshape(-1, 1, 1) if axis == 0 else inside.reshape(1, 1, -1)
            )
            shifted = (coordinates - shift[axis]) % length
            wrapped = coordinates < shift[axis]
            owner = 2 * (owner * (length // window[axis]) + shifted // window[axis]) + wrapped
            within = within * window[axis] + shifted % window[axis]
        return owner.ravel(), within.ravel()


def _grouped(owner_K: NDArray[np.int64], within_K: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Of `Groups`: members, place and within; and the window of each member, -1 at spare places."""
    _, window_K, counts = np.unique(owner_K, return_inverse=True, return_counts=True)
    size, groups = best_groups(tuple(counts.tolist()))
    tokens = np.split(np.argsort(window_K, kind="stable"), np.cumsum(counts)[:-1])
    members = np.zeros((len(groups), size), np.int64)
    owner = np.full((len(groups), size), -1)
    place_K = np.empty(len(owner_K), np.int64)
    for number, group in enumerate(groups):
        taken = np.concatenate([tokens[window] for window in group])
        members[number, : len(taken)] = taken
        owner[number, : len(taken)] = window_K[taken]
        place_K[taken] = number * size + np.arange(len(taken))
    return members, place_K, within_K[members], owner


def find_windows(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Modules that attend within windows, seen by what they have, with the method of theirs that does so."""
    found = []
    for module in model.modules():
        attention = getattr(module, "attn", None)
        if all(hasattr(module, name) for name in ("_attn", "window_size", "shift_size")):
            if hasattr(attention, "relative_position_bias_table") and _attends(attention):
                found.append((module, "_attn"))
        elif isinstance(getattr(module, "ws", None), int) and _attends(module):
            found.append((module, "forward"))
    return found


def _attends(module: Any) -> bool:
    return all(hasattr(module, name) for name in ATTENTION)


def grouped(module: Any, windows: Windows) -> Callable[..., Tensor]:
    """What takes the place of such a method, on strips: (B, s, V*s, C), or (B, K, C) with (s, V*s)."""

    def shifted_windows(x_BsLC: Tensor) -> Tensor:
        attention = module.attn
        groups = windows.groups(x_BsLC.shape[1], _pair(module.window_size), _pair(module.shift_size))
        index_GSS = attention.relative_position_index[
            groups.within_GS.unsqueeze(2), groups.within_GS.unsqueeze(1)
        ]
        bias_GSSn = attention.relative_position_bias_table[index_GSS.flatten()].view(*index_GSS.shape, -1)
        return _attend(attention, x_BsLC.flatten(1, 2), groups, bias_GSSn.permute(0, 3, 1, 2)).view_as(x_BsLC)

    def local_windows(x_BKC: Tensor, size: Size) -> Tensor:
        groups = windows.groups(size[0], _pair(module.ws), (0, 0))
        bias_GnSS = x_BKC.new_zeros(len(groups.members_GS), module.num_heads, 1, 1)
        return _attend(module, x_BKC, groups, bias_GnSS)

    return shifted_windows if hasattr(module, "shift_size") else local_windows


def _attend(attention: Any, tokens_BKC: Tensor, groups: Groups, bias_GnSS: Tensor) -> Tensor:
    """Attention of ``attention``'s own weights within groups: (B, K, C) -> the same shape."""
    batch, (count, size) = len(tokens_BKC), groups.members_GS.shape
    members = attention.qkv(tokens_BKC)[:, groups.members_GS.flatten()]
    by_head = members.view(batch, count, size, 3, attention.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
    query, key, value = by_head.flatten(2, 3)  # (B, G * heads, S, C / heads)
    bias = bias_GnSS.masked_fill(~groups.together_GSS.unsqueeze(1), float("-inf"))
    bias = bias.flatten(0, 1).unsqueeze(0).to(query.dtype)
    if attention.fused_attn:
        dropped = attention.attn_drop.p if attention.training else 0.0
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropped, scale=attention.scale
        )
    else:
        weights = (query * attention.scale) @ key.transpose(-2, -1) + bias
        output = attention.attn_drop(weights.softmax(dim=-1)) @ value
    places = output.view(batch, count, attention.num_heads, size, -1).transpose(2, 3).flatten(1, 2)
    mixed: Tensor = attention.proj(places.flatten(2)[:, groups.place_K])
    return attention.proj_drop(mixed)  # type: ignore[no-any-return]


def _pair(value: int | Size) -> Size:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
