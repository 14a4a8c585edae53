"""Build an `Encoder` from a model's name or a module, without classifier and optionally with fewer blocks."""

from functools import partial
from typing import Any

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import nn

from fastmim.encoders.adapter import DEPTH_ARGUMENTS, Encoder
from fastmim.encoders.initial import draw_xavier
from fastmim.encoders.kept_tables import keep_tables
from fastmim.encoders.probe import DoesNotRun
from fastmim.encoders.registry import arguments_of, check_model_name, create, fit_kwargs, without_memory
from fastmim.encoders.settings import EncoderConfig
from fastmim.encoders.sizes import working_sizes
from fastmim.errors import UsageError
from fastmim.system.size import Size


def build_encoder(
    model: str | nn.Module,
    image_size: Size,
    in_chans: int = 3,
    model_kwargs: dict[str, Any] | None = None,
    config: EncoderConfig = EncoderConfig(),
) -> Encoder:
    """Build a backbone at ``image_size`` = (H, W), without its classifier, ready for pre-training.

    Weights are drawn from torch's global generator; a given module keeps its weights. Parameters that the
    feature map does not depend on (for example a classifier's norm) are frozen at their current values.

    Args:
        model: a timm name, ``package.module:factory``, or a custom module: anything that maps images to a
            feature map (B, D, h, w) or tokens (B, h*w, D), or to a list whose last item is one of these.
        image_size: (H, W) of the encoder's input.
        in_chans: channels of the images.
        model_kwargs: further arguments of the model's constructor.
        config: initial weights, position embedding, relative position tables and depth.

    Raises:
        UsageError: the model is unknown, does not take an argument, or does not run at that size.
    """
    # Create the model, at the requested size and depth if it is given by name.
    if isinstance(model, nn.Module):
        for setting, value in (("encoder.depth", config.depth), ("model_kwargs", model_kwargs)):
            if value:
                raise UsageError(f"{setting} = {value} needs a model by name: a module is used as it is")
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
    # Draw initial weights, set up tables and position embedding, and freeze unused parameters.
    if config.init == "xavier" and isinstance(model, str):
        draw_xavier(encoder.model)
    if config.table_window is not None:
        keep_tables(encoder.model, config.table_window, encoder.model_name)
    if config.pos_embed == "sincos" and isinstance(model, str):
        _fix_position_embedding(encoder)
    for name, parameter in encoder.model.named_parameters():
        if name in encoder.unused:
            parameter.requires_grad_(False)
    return encoder


def _sizes_instead(model: str, model_kwargs: dict[str, Any], image_size: Size) -> str:
    """List the sizes that work, for an error message; empty if the size is not the cause of the error."""
    unsized = {name: value for name, value in model_kwargs.items() if name != "img_size"}
    try:
        sizes = working_sizes(model, unsized)
    except UsageError:
        return ""
    return "" if image_size[0] == image_size[1] in sizes.working else f"; sizes that work: {sizes}"


def name_of(model: nn.Module) -> str:
    """Name of a custom module in a run's files."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _shortened(name: str, kwargs: dict[str, Any], depth: int | tuple[int, ...]) -> dict[str, Any]:
    """Return arguments that omit the last blocks. Raises UsageError if the others would change."""
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
    hint = f"give the number of blocks of {name}, in total or per stage, and no more than it has"
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
