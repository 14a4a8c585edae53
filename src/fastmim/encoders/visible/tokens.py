"""Encode a subset of an image's tokens: the others are dropped before the backbone's blocks.

This uses timm's patch dropping: a model that can drop patches in training has a module named ``patch_drop``
between its position embedding and its blocks, which is replaced for one forward pass. Models with rotary
embeddings also take the indices of the kept tokens from ``patch_drop`` and rotate by them.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmim.encoders.probe import Features, last_features
from fastmim.encoders.registry import MODEL_ERRORS, weightless
from fastmim.errors import UsageError
from fastmim.system.size import Size

PART = "patch_drop"

# Selects tokens with position embeddings: (B, N, D) -> (B', K, D), where B' may be a multiple of B.
Choose = Callable[[Tensor], Tensor]


class Dropping(NamedTuple):
    """Form in which a model drops tokens."""

    tells_places: bool
    """Whether the model's ``patch_drop`` also returns the indices of the kept tokens."""
    prefix_tokens: int


class _Chosen(nn.Module):
    """Replacement of the model's ``patch_drop``: (B, P + N, D) -> (B', P + K, D)."""

    def __init__(self, dropping: Dropping, choose: Choose, places_BK: Tensor) -> None:
        super().__init__()
        self.dropping = dropping
        self.choose = choose
        self.places = places_BK

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if tokens.ndim != 3:
            raise ValueError(f"tokens of shape {tuple(tokens.shape)} are not a sequence")
        prefix, rest = tokens[:, : self.dropping.prefix_tokens], tokens[:, self.dropping.prefix_tokens :]
        chosen = self.choose(rest)
        # Before the first block, class token and registers are the same for all images.
        kept = torch.cat([prefix[:1].expand(len(chosen), -1, -1), chosen], dim=1)
        return (kept, self.places) if self.dropping.tells_places else kept


@contextlib.contextmanager
def dropped(model: nn.Module, dropping: Dropping, choose: Choose, places_BK: Tensor) -> Iterator[None]:
    """Context in which only the tokens selected by ``choose`` pass through the model's blocks.

    Args:
        model: the backbone.
        dropping: form in which the model drops tokens.
        choose: selects the tokens.
        places_BK: row-major indices of the selected tokens on the grid, (B', K).
    """
    own = getattr(model, PART)
    setattr(model, PART, _Chosen(dropping, choose, places_BK))
    try:
        yield
    finally:
        setattr(model, PART, own)


def find_dropping(
    model: nn.Module, name: str, image_size: Size, in_chans: int, features: Features
) -> Dropping:
    """Find the form in which the model drops tokens, by a trial forward pass on the meta device.

    Raises:
        UsageError: the model cannot drop tokens.
    """
    if features.layout == "tokens" and features.way != "forward_intermediates" and hasattr(model, PART):
        copy = weightless(model).eval()
        batch, kept = 3, 2
        images = torch.zeros(batch, in_chans, *image_size, device="meta")
        places = torch.zeros(batch, kept, dtype=torch.long, device="meta")
        for tells_places in (False, True):
            dropping = Dropping(tells_places, features.prefix_tokens)
            with (
                contextlib.suppress(*MODEL_ERRORS),
                torch.no_grad(),
                dropped(copy, dropping, lambda tokens: tokens[:, :kept], places),
            ):
                output = last_features(copy, images, features.way)
                if output.shape == (batch, features.prefix_tokens + kept, features.width):
                    return dropping
    raise UsageError(
        f"{name} cannot leave patches out: it has no {PART} between position embedding and blocks, unlike "
        "timm's plain vision transformers; method = fastmim takes any backbone"
    )
