"""Any backbone as a map from images (B, C, H, W) to features (B, D, h, w).

Nothing here knows an architecture. What a model can do is asked of the model (`set_input_size`,
`pos_embed`, its constructor's arguments), and its output layout, stride and width are found by running
it once.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn

from fastmim.encoders.embedding import Embedding, edited, find_embedding
from fastmim.encoders.layers import (
    Keep,
    Layer,
    check_same_features,
    features_and_layers,
    find_layers,
    has_layers,
    layers_alone,
)
from fastmim.encoders.models import arguments_of, check_model_name, create, fit_kwargs, without_memory
from fastmim.encoders.probe import DoesNotRun, Features, last_features, probe
from fastmim.encoders.resize import Carry, carry_tensors, resize
from fastmim.encoders.sizes import working_sizes
from fastmim.encoders.strips import check_strips, strip_features
from fastmim.encoders.tokens import Choose, Dropping, dropped, find_dropping
from fastmim.errors import UsageError
from fastmim.grids import Size, tokens_to_map

DEPTH_ARGUMENTS = ("depths", "depth", "layers")  # by which constructors are told their number of blocks


@dataclass(frozen=True)
class EncoderConfig:
    """How the backbone is set up for pre-training; the backbone itself is never changed."""

    pos_embed: Literal["sincos", "learned"] = "sincos"
    """Absolute position embedding of a plain ViT: fixed 2-D sine-cosine, or learned. Others have none."""
    depth: int | tuple[int, ...] | None = None
    """Blocks to pre-train (10), or blocks of each stage (2 2 18 0): the last ones are left out, and
    initialised anew when the weights are loaded (paper: table 1c). Default: all."""

    def __post_init__(self) -> None:
        depths = (self.depth,) if isinstance(self.depth, int) else self.depth or (1,)
        if min(depths) < 0 or max(depths) < 1:
            raise UsageError(f"encoder.depth = {self.depth} must be at least 1 block in all")


class Encoder(nn.Module):
    """A backbone with its feature map, stride (pixels between tokens) and width (D).

    ``model`` is the very module that fine-tuning uses; ``model_name`` and ``model_kwargs`` rebuild it
    (`encoders.models.create`), and ``model.state_dict()`` carries its own keys. ``full_kwargs`` rebuild it
    with the blocks that were left out.
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
        self.features = features
        self.way, self.layout, self.prefix_tokens, self.stride, self.width, self.grid = features

    def forward(self, images_BCHW: Tensor, edit: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Features (B, D, H/stride, W/stride).

        Args:
            images_BCHW: normalised images.
            edit: changes the patch embedding's tokens, (B, d, h', w') -> the same shape.
        """
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
        return features

    def _as_map(self, output: Tensor, images_BCHW: Tensor) -> Tensor:
        grid = (images_BCHW.shape[2] // self.stride, images_BCHW.shape[3] // self.stride)
        if self.layout == "tokens":
            return tokens_to_map(output[:, self.prefix_tokens :], grid)
        features: Tensor = output.permute(0, 3, 1, 2) if self.layout == "channels-last" else output
        if features.shape[2:] != grid:  # unpadded convolutions lose the border
            features = F.interpolate(features, grid, mode="bilinear", align_corners=False)
        return features

    @contextlib.contextmanager
    def keeping(self, wanted: Sequence[int]) -> Iterator[Keep]:
        """Within the block, `forward` leaves the maps of the layers ``wanted`` in what this gives.

        Args:
            wanted: numbers from 0, see `layers`.
        """
        self._keep = Keep(wanted)
        try:
            yield self._keep
        finally:
            self._keep = None

    def maps(self, images_BCHW: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """The maps (B, D, h, w) of the layers ``wanted``, without the features."""
        if has_layers(self.model):
            return layers_alone(self.model, images_BCHW, wanted)
        return [self(images_BCHW)] * len(wanted)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The form of each layer's map: of blocks or of stages; of a model that tells none, its features.

        Raises:
            UsageError: the model does not give them.
        """
        if not has_layers(self.model):
            grid = (self.image_size[0] // self.stride, self.image_size[1] // self.stride)
            return (Layer(self.width, grid),)
        return find_layers(self.model, self.model_name, self.image_size, self.in_chans)

    def check_keeping(self) -> None:
        """Raise UsageError unless `forward` gives the same features within `keeping`."""
        if has_layers(self.model):
            check_same_features(self.model, self.model_name, self.image_size, self.in_chans, self.way)

    def some(
        self,
        images_BCHW: Tensor,
        places_BK: Tensor,
        choose: Choose,
        edit: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Only some tokens go through the blocks: prefix tokens (B', P, D) and those chosen (B', K, D).

        Args:
            images_BCHW: normalised images.
            places_BK: where on the grid, row by row, those tokens stand, (B', K).
            choose: takes them out of all of an image's, with their positions: (B, N, D) -> (B', K, D).
            edit: as in `forward`; may give a multiple of the batch.

        Raises:
            UsageError: this is no backbone of which tokens can be left out.
        """
        editing = contextlib.nullcontext() if edit is None else edited(self.model, self.embedding, edit)
        dropping = self.dropping
        with editing, dropped(self.model, dropping, choose, places_BK):
            output = last_features(self.model, images_BCHW, self.way)
        return output[:, : self.prefix_tokens], output[:, self.prefix_tokens :]

    def visible(self, images_BCHW: Tensor, places_BV: Tensor) -> Tensor:
        """Only some blocks, as large as the stride, are computed: their features (B, V, D).

        Args:
            images_BCHW: normalised images.
            places_BV: where on the grid, row by row, those blocks stand. With window attention they must be
                the same in all images.
        """
        return strip_features(self.model, images_BCHW, places_BV, self.grid, self.features)

    def check_visible(self) -> None:
        """Raise UsageError unless `visible` works at the present size."""
        check_strips(self.model, self.model_name, self.image_size, self.in_chans, self.features)

    @cached_property
    def dropping(self) -> Dropping:
        """How the model leaves tokens out. Raises UsageError where it cannot."""
        return find_dropping(self.model, self.model_name, self.image_size, self.in_chans, self.features)

    @cached_property
    def embedding(self) -> Embedding:
        """The model's first part that makes tokens of pixels. Raises UsageError where there is none."""
        return find_embedding(self.model, self.model_name, self.image_size, self.in_chans, self.way)

    def set_image_size(self, image_size: Size) -> Carry:
        """Go on at another size: position embeddings and bias tables are resampled (bicubic).

        Returns:
            What does the same to other tensors with the names and shapes of this encoder's parameters,
            such as an optimiser's running means.
        """
        old_size, old_kwargs = self.image_size, self.model_kwargs
        shape = carry_tensors(self.model, self.model_name, old_kwargs, old_size, image_size)
        frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
        self.model, self.model_kwargs = resize(self.model, self.model_name, old_kwargs, old_size, image_size)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        changed = {k: v for k, v in self.model_kwargs.items() if k not in DEPTH_ARGUMENTS}
        self.full_kwargs = {**self.full_kwargs, **changed}
        self.image_size = image_size
        features, _ = probe(self.model, self.model_name, image_size, self.in_chans)
        self._take(features)
        return shape


def build_encoder(
    model: str | nn.Module,
    image_size: Size,
    in_chans: int = 3,
    model_kwargs: dict[str, Any] | None = None,
    config: EncoderConfig = EncoderConfig(),
) -> Encoder:
    """Build a backbone at ``image_size`` = (H, W), without its classifier, ready to pre-train.

    Weights are drawn from torch's global generator; a module keeps its own. Parameters that the feature
    map does not depend on (a classifier's norm, say) are frozen as they are.

    Args:
        model: a name of timm's, ``package.module:factory``, or a module of one's own: anything that turns
            images into a feature map (B, D, h, w) or tokens (B, h*w, D), or a list of which that is the last.

    Raises:
        UsageError: no such model, an argument it does not take, or a size it cannot run at.
    """
    if isinstance(model, nn.Module):
        for setting, value in (("encoder.depth", config.depth), ("model_kwargs", model_kwargs)):
            if value:
                raise UsageError(f"{setting} = {value} needs a model by name: a module is taken as it is")
        encoder = Encoder(model, name_of(model), {}, image_size, in_chans)
    else:
        check_model_name(model)
        full_kwargs = fit_kwargs(model, dict(model_kwargs or {}), image_size, in_chans)
        kwargs = full_kwargs
        if config.depth is not None:
            kwargs = _shortened(model, full_kwargs, config.depth)
        try:
            encoder = Encoder(create(model, kwargs), model, kwargs, image_size, in_chans, full_kwargs)
        except DoesNotRun as error:
            raise UsageError(f"{error}{_sizes_instead(model, model_kwargs or {}, image_size)}") from error
    if config.pos_embed == "sincos" and isinstance(model, str):
        _fix_position_embedding(encoder)
    for name, parameter in encoder.model.named_parameters():
        if name in encoder.unused:
            parameter.requires_grad_(False)
    return encoder


def _sizes_instead(model: str, model_kwargs: dict[str, Any], image_size: Size) -> str:
    """Which sizes would work, where the size is what does not."""
    unsized = {name: value for name, value in model_kwargs.items() if name != "img_size"}
    try:
        sizes = working_sizes(model, unsized)
    except UsageError:
        return ""
    return "" if image_size[0] == image_size[1] in sizes.working else f"; sizes that work: {sizes}"


def name_of(model: nn.Module) -> str:
    """What a module of someone's own is called in a run's files."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _shortened(name: str, kwargs: dict[str, Any], depth: int | tuple[int, ...]) -> dict[str, Any]:
    """The arguments that leave the last blocks out. Raises UsageError unless the rest is as it was."""
    full = without_memory(partial(create, name, kwargs))
    takes = arguments_of(name, full)
    argument = next((argument for argument in DEPTH_ARGUMENTS if argument in takes), None)
    if argument is None:
        raise UsageError(
            f"encoder.depth: {name} cannot be shortened, its constructor takes none of "
            f"{', '.join(DEPTH_ARGUMENTS)}"
        )
    value = depth if isinstance(depth, int) else list(depth)
    shorter = {**kwargs, argument: value}
    hint = f"{name} needs its number of blocks, or one for each of its stages, and no more than it has"
    try:
        state = without_memory(partial(create, name, shorter)).state_dict()
    except UsageError as error:
        raise UsageError(f"encoder.depth = {value}: {hint} ({error.__cause__})") from error
    whole = full.state_dict()
    extra = [key for key in state if key not in whole or state[key].shape != whole[key].shape]
    if extra:
        raise UsageError(f"encoder.depth = {value}: {hint}")
    return shorter


def _fix_position_embedding(encoder: Encoder) -> None:
    """Replace an isotropic model's learned absolute position embedding by a fixed 2-D sine-cosine one."""
    embedding = getattr(encoder.model, "pos_embed", None)
    if encoder.layout != "tokens" or not isinstance(embedding, nn.Parameter) or embedding.ndim != 3:
        return
    height, width = encoder.grid
    prefix = embedding.shape[1] - height * width
    if prefix not in (0, encoder.prefix_tokens) or embedding.shape[2] % 4:
        return
    table = build_sincos2d_pos_embed([height, width], dim=embedding.shape[2])
    with torch.no_grad():
        embedding.zero_()
        embedding[0, prefix:] = table.to(embedding)
    embedding.requires_grad_(False)
