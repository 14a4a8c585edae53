"""Any timm backbone as a map from images (B, C, H, W) to features (B, D, h, w).

Nothing here knows an architecture. What a model can do is asked of the model (`set_input_size`,
`pos_embed`, its constructor's arguments), and its output layout, stride and width are found by running
it once.
"""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn

from fastmim.errors import UsageError
from fastmim.grids import Size, tokens_to_map

Layout = Literal["tokens", "channels-last", "channels-first"]


@dataclass(frozen=True)
class EncoderConfig:
    """How the backbone is set up for pre-training; the backbone itself is never changed."""

    pos_embed: Literal["sincos", "learned"] = "sincos"
    """Absolute position embedding of a plain ViT: fixed 2-D sine-cosine, or learned. Others have none."""


class Encoder(nn.Module):
    """A backbone with its feature map, stride (pixels between tokens) and width (D).

    ``model`` is the very timm module that fine-tuning uses; ``model_name`` and ``model_kwargs`` rebuild
    it by ``timm.create_model``, and ``model.state_dict()`` carries timm's own keys.
    """

    def __init__(
        self, model: nn.Module, model_name: str, model_kwargs: dict[str, Any], image_size: Size, in_chans: int
    ) -> None:
        super().__init__()
        self.model = model
        self.model_name = model_name
        self.model_kwargs = model_kwargs
        self.image_size = image_size
        self.in_chans = in_chans
        self.layout, self.prefix_tokens, self.stride, self.width = self._probe()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        output: Tensor = self.model.forward_features(images_BCHW)  # type: ignore[operator]
        if self.layout == "tokens":
            grid = (images_BCHW.shape[2] // self.stride, images_BCHW.shape[3] // self.stride)
            return tokens_to_map(output[:, self.prefix_tokens :], grid)
        if self.layout == "channels-last":
            return output.permute(0, 3, 1, 2)
        return output

    @torch.no_grad()
    def _probe(self) -> tuple[Layout, int, int, int]:
        """Layout, prefix tokens, stride and width, seen from one forward pass."""
        height, width = self.image_size
        try:
            output = self._features_of_zeros(self.image_size)
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
            raise UsageError(
                f"{self.model_name} does not run on images of {height}x{width}: {_first_line(error)}"
            ) from error
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            raise UsageError(f"{self.model_name} gives no feature map: its features are {_describe(output)}")
        layout, prefix = self._layout_of(output)
        tokens = output.shape[1] - prefix
        if layout == "tokens":
            stride = self._patch_side() or round((height * width / tokens) ** 0.5)
            grid = (self.image_size[0] // stride, self.image_size[1] // stride)
            dim = output.shape[2]
        else:
            rows, columns, channels = (2, 3, 1) if layout == "channels-first" else (1, 2, 3)
            grid = (output.shape[rows], output.shape[columns])
            stride = self._stride_of(output, layout) or round(height / grid[0])
            dim = output.shape[channels]
        if (grid[0] * stride, grid[1] * stride) != self.image_size or (
            layout == "tokens" and grid[0] * grid[1] != tokens
        ):
            near = " or ".join(str(n) for n in self._near_sizes(stride))
            raise UsageError(
                f"image_size = {height}x{width} is no multiple of the stride of {self.model_name}, "
                f"{stride} pixels; {near} would be"
            )
        return layout, prefix, stride, dim

    def _features_of_zeros(self, image_size: Size) -> Tensor:
        was_training = self.model.training
        self.model.eval()
        parameter = next(self.model.parameters())
        images = torch.zeros(1, self.in_chans, *image_size, device=parameter.device)
        try:
            return self.model.forward_features(images)  # type: ignore[operator,no-any-return]
        finally:
            self.model.train(was_training)

    def _stride_of(self, output: Tensor, layout: Layout) -> int | None:
        """The stride as growth from one size to the double: at a single size, rounding could hide it."""
        if "img_size" in self.model_kwargs:
            return None
        height, width = self.image_size
        try:
            larger = self._features_of_zeros((2 * height, 2 * width))
        except (RuntimeError, AssertionError, ValueError, TypeError, IndexError):
            return None
        axis = 2 if layout == "channels-first" else 1
        rows, more_rows = output.shape[axis], larger.shape[axis]
        told = (getattr(self.model, "feature_info", None) or [{}])[-1].get("reduction")
        if told and (-(-height // told), -(-2 * height // told)) == (rows, more_rows):
            return int(told)
        return round(height / (more_rows - rows)) if more_rows > rows else None

    def _patch_side(self) -> int | None:
        """What a model of tokens says its patches measure; checked against the tokens it gives."""
        side = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        side = side[0] if isinstance(side, tuple) else side
        return side if isinstance(side, int) else None

    def _near_sizes(self, stride: int) -> list[int]:
        side = next((side for side in self.image_size if side % stride), self.image_size[0])
        below = max(side // stride, 1) * stride
        return [below, below + stride]

    def _layout_of(self, output: Tensor) -> tuple[Layout, int]:
        if output.ndim == 3:
            return "tokens", int(getattr(self.model, "num_prefix_tokens", 0) or 0)
        if getattr(self.model, "output_fmt", None) == "NHWC":
            return "channels-last", 0
        features = getattr(self.model, "num_features", output.shape[1])
        if output.shape[1] != features and output.shape[3] == features:
            return "channels-last", 0
        return "channels-first", 0


def build_encoder(
    model_name: str,
    image_size: Size,
    in_chans: int = 3,
    model_kwargs: dict[str, Any] | None = None,
    config: EncoderConfig = EncoderConfig(),
) -> Encoder:
    """Build a timm backbone at ``image_size`` = (H, W), without its classifier, ready to pre-train.

    Weights are drawn from torch's global generator. Parameters that the feature map does not depend on
    (a classifier's norm, say) are frozen as they are.

    Raises:
        UsageError: no such model, an argument it does not take, or a size it cannot run at.
    """
    check_model_name(model_name)
    kwargs: dict[str, Any] = {"num_classes": 0, **(model_kwargs or {})}
    if in_chans != 3:
        kwargs["in_chans"] = in_chans
    kwargs = _fit_kwargs(model_name, kwargs, image_size)
    model = create(model_name, kwargs)
    encoder = Encoder(model, model_name, kwargs, image_size, in_chans)
    if config.pos_embed == "sincos":
        _fix_position_embedding(encoder)
    _freeze_unused(encoder)
    return encoder


def check_model_name(model_name: str) -> None:
    """Raise UsageError, naming similar ones, unless timm knows the model."""
    if timm.is_model(model_name):
        return
    known = timm.list_models()
    close = difflib.get_close_matches(model_name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists those it has"
    raise UsageError(f"timm has no model named {model_name!r}; {hint}")


def create(model_name: str, model_kwargs: dict[str, Any]) -> nn.Module:
    """``timm.create_model`` without pre-trained weights, its complaints as UsageError."""
    try:
        model: nn.Module = timm.create_model(model_name, pretrained=False, **model_kwargs)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"timm cannot build {model_name} with {model_kwargs}: {_first_line(error)}"
        ) from error
    return model


def _fit_kwargs(model_name: str, kwargs: dict[str, Any], image_size: Size) -> dict[str, Any]:
    """The arguments with which ``timm.create_model`` builds the model for ``image_size`` directly.

    A model that can change its size is asked to do so once, and the arguments are the first that give
    parameters of the very same shapes: timm derives window sizes from the image size in one of the two
    ways but not in the other.
    """
    shape = _without_memory(lambda: create(model_name, kwargs))
    takes = inspect.signature(type(shape).__init__).parameters
    if "drop_path_rate" in takes and takes["drop_path_rate"].default:
        kwargs = {"drop_path_rate": 0.0, **kwargs}  # the paper pre-trains without
    if "img_size" not in takes or "img_size" in kwargs:
        return kwargs
    size: int | list[int] = image_size[0] if image_size[0] == image_size[1] else list(image_size)
    sized = {**kwargs, "img_size": size}
    if not hasattr(shape, "set_input_size") or "window_size" in kwargs:
        return sized
    try:
        resized = _without_memory(lambda: _resized(model_name, kwargs, image_size))
    except (RuntimeError, AssertionError, ValueError, TypeError):
        return sized
    candidates = [sized]
    if "window_size" in takes:
        candidates += [{**sized, "window_size": window} for window in _windows_of(resized)]
    for candidate in candidates:
        built = _without_memory(partial(create, model_name, candidate))
        if _shapes(built) == _shapes(resized):
            return candidate
    return sized


def _resized(model_name: str, kwargs: dict[str, Any], image_size: Size) -> nn.Module:
    model = create(model_name, kwargs)
    model.set_input_size(img_size=image_size)  # type: ignore[operator]
    return model


def _windows_of(model: nn.Module) -> list[int | list[int]]:
    """The window sizes that stand in a model, largest first."""
    found = {getattr(module, "window_size", None) for module in model.modules()}
    pairs = {(w, w) if isinstance(w, int) else tuple(w) for w in found if w is not None}
    return [w[0] if len(set(w)) == 1 else list(w) for w in sorted(pairs, reverse=True)]


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def _without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Build on the meta device where that works (no memory, no random numbers), else really."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, UsageError, RuntimeError):
        with torch.random.fork_rng(devices=[]):
            return build()


def _fix_position_embedding(encoder: Encoder) -> None:
    """Replace an isotropic model's learned absolute position embedding by a fixed 2-D sine-cosine one."""
    embedding = getattr(encoder.model, "pos_embed", None)
    if encoder.layout != "tokens" or not isinstance(embedding, nn.Parameter) or embedding.ndim != 3:
        return
    height, width = (side // encoder.stride for side in encoder.image_size)
    prefix = embedding.shape[1] - height * width
    if prefix not in (0, encoder.prefix_tokens) or embedding.shape[2] % 4:
        return
    table = build_sincos2d_pos_embed([height, width], dim=embedding.shape[2])
    with torch.no_grad():
        embedding.zero_()
        embedding[0, prefix:] = table.to(embedding)
    embedding.requires_grad_(False)


def _freeze_unused(encoder: Encoder) -> None:
    """Freeze the parameters that the feature map does not depend on: they could only decay."""
    was_training = encoder.training
    encoder.eval()
    parameter = next(encoder.parameters())
    images = torch.zeros(1, encoder.in_chans, *encoder.image_size, device=parameter.device)
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(encoder(images).sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    encoder.train(was_training)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _describe(output: object) -> str:
    return f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
