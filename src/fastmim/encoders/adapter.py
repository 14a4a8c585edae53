"""Adapt any backbone to a map from images (B, C, H, W) to features (B, D, h, w).

This module knows no architecture. The capabilities of a model are read from the model (`set_input_size`,
`pos_embed`, its constructor's arguments), and its output layout, stride and width are found by one forward
pass.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.encoders.intermediates import (
    Keep,
    Layer,
    check_same_features,
    features_and_layers,
    find_layers,
    has_layers,
    layers_alone,
)
from fastmim.encoders.kept_tables import kept_names, put_tables, take_tables
from fastmim.encoders.patch_embedding import Embedding, edited, find_embedding
from fastmim.encoders.probe import Features, last_features, probe
from fastmim.encoders.resize import Resampler, carry_all_but, carry_tensors, resize
from fastmim.encoders.visible.blocks import Strip, check_strips, strip_features
from fastmim.encoders.visible.tokens import Choose, Dropping, dropped, find_dropping
from fastmim.mim.grids import tokens_to_map
from fastmim.system.size import Size

if TYPE_CHECKING:
    from fastmim.encoders.visible.windows import Layout

DEPTH_ARGUMENTS = ("depths", "depth", "layers")  # names of constructor arguments for the number of blocks


class Encoder(nn.Module):
    """A backbone with its feature map, stride (pixels between tokens) and width (D).

    ``model`` is the same module that fine-tuning uses; ``model_name`` and ``model_kwargs`` rebuild it
    (`encoders.registry.create`), and ``model.state_dict()`` has the model's original keys. ``full_kwargs``
    rebuild it with the blocks that were omitted.
    """

    def __init__(
        self,
        model: nn.Module,
        model_name: str,
        model_kwargs: dict[str, Any],
        image_size: Size,
        in_chans: int,
        full_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.model_name = model_name
        self.model_kwargs = model_kwargs
        self.full_kwargs = model_kwargs if full_kwargs is None else full_kwargs
        self.image_size = image_size
        self.in_chans = in_chans
        self._keep: Keep | None = None
        features, self.unused = probe(model, model_name, image_size, in_chans)
        self._take(features)

    def _take(self, features: Features) -> None:
        for known in ("embedding", "dropping", "layers"):
            self.__dict__.pop(known, None)
        self._layouts: set[Layout] = set()  # layouts of window attention found by earlier strips
        self.features = features
        self.way, self.layout, self.prefix_tokens, self.stride, self.width, self.grid = features

    def forward(self, images_BCHW: Tensor, edit: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Compute features (B, D, H/stride, W/stride).

        Args:
            images_BCHW: normalised images.
            edit: function applied to the tokens of the patch embedding, (B, d, h', w') -> (B, d, h', w').
        """
        return self.with_prefix(images_BCHW, edit)[0]

    def with_prefix(
        self, images_BCHW: Tensor, edit: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute features as `forward`, and the prefix tokens (B, P, D), or None if the model has none."""
        keep = self._keep if has_layers(self.model) else None
        editing = contextlib.nullcontext() if edit is None else edited(self.model, self.embedding, edit)
        with editing:
            if keep is None:
                output = last_features(self.model, images_BCHW, self.way)
            else:
                output, keep.maps = features_and_layers(self.model, images_BCHW, self.way, keep.wanted)
        features = self._as_map(output, images_BCHW)
        if keep is None and self._keep is not None:
            self._keep.maps = [features] * len(self._keep.wanted)
        has_prefix = self.layout == "tokens" and self.prefix_tokens > 0
        return features, output[:, : self.prefix_tokens] if has_prefix else None

    def _as_map(self, output: Tensor, images_BCHW: Tensor) -> Tensor:
        grid = (images_BCHW.shape[2] // self.stride, images_BCHW.shape[3] // self.stride)
        if self.layout == "tokens":
            return tokens_to_map(output[:, self.prefix_tokens :], grid)
        features: Tensor = output.permute(0, 3, 1, 2) if self.layout == "channels-last" else output
        if features.shape[2:] != grid:  # unpadded convolutions lose the border
            features = F.interpolate(features, grid, mode="bilinear", align_corners=False)
        return features

    @contextlib.contextmanager
    def capture(self, wanted: Sequence[int]) -> Iterator[Keep]:
        """Context in which `forward` stores the maps of the layers ``wanted`` in the yielded `Keep`.

        Args:
            wanted: layer indices from 0, see `layers`.
        """
        self._keep = Keep(wanted)
        try:
            yield self._keep
        finally:
            self._keep = None

    def forward_layers(self, images_BCHW: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """Compute only the maps (B, D, h, w) of the layers ``wanted``, without the final features."""
        if has_layers(self.model):
            return layers_alone(self.model, images_BCHW, wanted)
        return [self(images_BCHW)] * len(wanted)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Width and grid of each layer (block or stage), or of the final features if the model has no layers.

        Raises:
            UsageError: the model does not give the maps of its layers.
        """
        if not has_layers(self.model):
            grid = (self.image_size[0] // self.stride, self.image_size[1] // self.stride)
            return (Layer(self.width, grid),)
        return find_layers(self.model, self.model_name, self.image_size, self.in_chans)

    def check_keeping(self) -> None:
        """Raise UsageError unless `forward` gives the same features within `capture`."""
        if has_layers(self.model):
            check_same_features(self.model, self.model_name, self.image_size, self.in_chans, self.way)

    def forward_tokens(
        self,
        images_BCHW: Tensor,
        places_BK: Tensor,
        choose: Choose,
        edit: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode only selected tokens; returns prefix tokens (B', P, D) and selected tokens (B', K, D).

        Args:
            images_BCHW: normalised images.
            places_BK: row-major indices of the selected tokens on the grid, (B', K).
            choose: selects tokens from all of an image's, with position embeddings: (B, N, D) -> (B', K, D).
            edit: as in `forward`; may return a multiple of the batch.

        Raises:
            UsageError: the backbone cannot drop tokens.
        """
        editing = contextlib.nullcontext() if edit is None else edited(self.model, self.embedding, edit)
        dropping = self.dropping
        with editing, dropped(self.model, dropping, choose, places_BK):
            output = last_features(self.model, images_BCHW, self.way)
        return output[:, : self.prefix_tokens], output[:, self.prefix_tokens :]

    def forward_blocks(
        self, images_BCHW: Tensor, places_BV: Tensor, places_V: Tensor | None = None
    ) -> Tensor:
        """Encode only selected blocks, each as large as the stride; returns their features (B, V, D).

        Args:
            images_BCHW: normalised images.
            places_BV: row-major indices of the selected blocks on the grid. With window attention they must
                be the same in all images.
            places_V: the same indices on the CPU. Without them, window attention copies ``places_BV`` from
                the device.
        """
        strip = Strip(places_BV, self.grid, places_V, self._layouts)
        return strip_features(self.model, images_BCHW, strip, self.features)

    def check_visible(self) -> None:
        """Raise UsageError unless `forward_blocks` works at the current image size."""
        check_strips(
            self.model, self.model_name, self.image_size, self.in_chans, self.features, self._layouts
        )

    @cached_property
    def dropping(self) -> Dropping:
        """Form in which the model drops tokens. Raises UsageError if it cannot."""
        return find_dropping(self.model, self.model_name, self.image_size, self.in_chans, self.features)

    @cached_property
    def embedding(self) -> Embedding:
        """First module that converts pixels to tokens. Raises UsageError if there is none."""
        return find_embedding(self.model, self.model_name, self.image_size, self.in_chans, self.way)

    def set_image_size(self, image_size: Size) -> Resampler:
        """Change the image size: position embeddings and bias tables are resampled (bicubic).

        Returns:
            A function that resamples other tensors with the names and shapes of this encoder's parameters,
            such as an optimiser's running means.

        Raises:
            UsageError: the model cannot have that size.
        """
        old_size, old_kwargs = self.image_size, self.model_kwargs
        kept = take_tables(self.model)
        try:
            shape = carry_tensors(self.model, self.model_name, old_kwargs, old_size, image_size)
            frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
            self.model, self.model_kwargs = resize(
                self.model, self.model_name, old_kwargs, old_size, image_size
            )
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name not in frozen)
        finally:
            put_tables(self.model, kept)
        changed = {k: v for k, v in self.model_kwargs.items() if k not in DEPTH_ARGUMENTS}
        self.full_kwargs = {**self.full_kwargs, **changed}
        self.image_size = image_size
        features, _ = probe(self.model, self.model_name, image_size, self.in_chans)
        self._take(features)
        return carry_all_but(kept_names(kept), shape) if kept else shape
