"""Find the patch embedding of a backbone by running it, and edit its tokens, for example to mask them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastmim.encoders.probe import Way, last_features
from fastmim.encoders.registry import MODEL_ERRORS, weightless
from fastmim.errors import UsageError
from fastmim.mim.grids import map_to_tokens, tokens_to_map
from fastmim.system.size import Size

TokenLayout = Literal["tokens", "channels-last", "channels-first"]


class Embedding(NamedTuple):
    """Patch embedding or first convolution of a backbone."""

    name: str
    """Name of the module within the model."""
    layout: TokenLayout
    stride: int
    """Pixels between tokens."""
    width: int
    """Channels of a token."""
    grid: Size


def find_embedding(model: nn.Module, name: str, image_size: Size, in_chans: int, way: Way) -> Embedding:
    """Find the first module of the model that outputs a grid of tokens. Raises UsageError if none does."""
    found: list[Embedding] = []
    copy = weightless(model).eval()
    for child_name, child in _called(copy):

        def look(module: nn.Module, _: Any, output: Any, child_name: str = child_name) -> None:
            if isinstance(output, tuple) and output:  # (tokens, size of their grid)
                output = output[0]
            if not found and isinstance(output, Tensor):
                form = _form_of(module, output, image_size)
                if form is not None:
                    found.append(Embedding(child_name, *form))

        child.register_forward_hook(look)
    # Errors in later modules do not matter, because the embedding is called first.
    with contextlib.suppress(*MODEL_ERRORS), torch.no_grad():
        last_features(copy, torch.zeros(1, in_chans, *image_size, device="meta"), way)
    if not found:
        raise UsageError(
            f"mask.place = patch: no part of {name} was found to embed patches; use mask.place = image"
        )
    return found[0]


def _called(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's parts by name; for a list, which is never called itself, its items."""
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{number}", part) for number, part in child.named_children())
        else:
            yield name, child


def _form_of(
    module: nn.Module, output: Tensor, image_size: Size
) -> tuple[TokenLayout, int, int, Size] | None:
    height, width = image_size
    if output.ndim == 3:
        stride = (height * width / output.shape[1]) ** 0.5
        if stride.is_integer() and stride > 1:
            return "tokens", int(stride), output.shape[2], (height // int(stride), width // int(stride))
        return None
    if output.ndim != 4:
        return None
    orders: list[tuple[TokenLayout, int, int]] = [("channels-first", 1, 2), ("channels-last", 3, 1)]
    if str(getattr(module, "output_fmt", "")).endswith("NHWC"):
        orders.reverse()
    for layout, channels, rows in orders:
        h, w = output.shape[rows], output.shape[rows + 1]
        if h < height and height % h == 0 and w * (height // h) == width:
            return layout, height // h, output.shape[channels], (h, w)
    return None


@contextlib.contextmanager
def edited(model: nn.Module, embedding: Embedding, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Context in which ``edit`` is applied to the embedding's tokens, as (B, d, h, w)."""

    def change(module: nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return change(module, _, output[0]), *output[1:]
        if embedding.layout == "tokens":
            return map_to_tokens(edit(tokens_to_map(output, embedding.grid)))
        if embedding.layout == "channels-last":
            return edit(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return edit(output)

    handle = model.get_submodule(embedding.name).register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()
