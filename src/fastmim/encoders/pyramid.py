"""Feature maps of any backbone at strides 4, 8, 16 and 32, for detection and segmentation.

A pyramid gives the last map of each stage. A plain vision transformer, whose maps all have one stride, is cut
into four equal subsets of blocks, and the last map of each subset is resampled (Li et al. 2021, "Benchmarking
Detection Transfer Learning with Vision Transformers", section 2.1). Strides that a backbone does not have are
resampled from the nearest map that it has.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from fastmim.encoders.adapter import Encoder
from fastmim.encoders.intermediates import Layer
from fastmim.encoders.probe import look_at
from fastmim.encoders.registry import MODEL_ERRORS, weightless
from fastmim.encoders.resize import resize
from fastmim.errors import UsageError, first_line
from fastmim.system.size import Size

STRIDES = (4, 8, 16, 32)
NORM_GROUPS = 32  # of GroupNorm; 1 if the width is not a multiple of it
MULTIPLES = (1, 2, 3, 4, 6, 7, 8, 12, 14, 16)  # of the stride, which windows and blocks can need


@dataclass(frozen=True)
class Level:
    """One map of the pyramid, and the layer of the backbone that it is computed from."""

    stride: int
    """Of the map, in pixels."""
    layer: int
    """Index of the backbone's layer, see `Encoder.layers`."""
    width: int
    octaves: int
    """Factor of resampling, as a power of two: above 0 enlarged, below 0 reduced, 0 unchanged."""


class FeaturePyramid(nn.Module):
    """Images (B, C, H, W) -> maps at strides 4, 8, 16, 32: (B, D, ceil(H / stride), ceil(W / stride)).

    Args:
        encoder: any backbone, see `fit_image_size`.
        image_size: (H, W) of the images, at most the encoder's. Images are padded with zeros, at the bottom
            and on the right, to the encoder's size, and the maps are cropped.

    Raises:
        UsageError: the backbone does not give the maps of its layers.
    """

    def __init__(self, encoder: Encoder, image_size: Size | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_size = encoder.image_size if image_size is None else image_size
        self.levels = choose_levels(encoder.layers, encoder.image_size)
        self.widths = tuple(level.width for level in self.levels)
        # The outputs of pre-norm blocks are not normalised; detectors based on them norm each map.
        normed = any(isinstance(module, nn.LayerNorm) for module in encoder.modules())
        self.norms = nn.ModuleList(
            LayerNorm2d(level.width) if normed else nn.Identity() for level in self.levels
        )
        self.resamplers = nn.ModuleList(_resampler(level.width, level.octaves) for level in self.levels)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        height, width = images_BCHW.shape[2:]
        below, right = self.encoder.image_size[0] - height, self.encoder.image_size[1] - width
        padded = F.pad(images_BCHW, (0, right, 0, below))
        maps = self.encoder.forward_layers(padded, [level.layer for level in self.levels])
        pyramid = []
        for level, map_, norm, resample in zip(self.levels, maps, self.norms, self.resamplers, strict=True):
            whole = (-(-padded.shape[2] // level.stride), -(-padded.shape[3] // level.stride))
            resampled = resample(norm(map_))
            if resampled.shape[2:] != whole:  # a stride such as 14, or a border lost by convolutions
                resampled = F.interpolate(resampled, whole, mode="bilinear", align_corners=False)
            rows, columns = -(-height // level.stride), -(-width // level.stride)
            pyramid.append(resampled[:, :, :rows, :columns])
        return pyramid

    def describe(self) -> str:
        """Describe in words which layers the maps come from."""
        parts = []
        for level in self.levels:
            how = "" if not level.octaves else f" {'enlarged' if level.octaves > 0 else 'reduced'}"
            parts.append(f"stride {level.stride} from layer {level.layer + 1}{how}")
        return f"pyramid of {len(self.encoder.layers)} layers: {', '.join(parts)}"


def choose_levels(layers: Sequence[Layer], image_size: Size) -> tuple[Level, ...]:
    """Choose the layer for each stride: the last one of that stride, or the nearest one, to be resampled.

    Args:
        layers: width and grid of each of the backbone's layers, in order.
        image_size: (H, W) of the backbone's input.
    """
    octaves = [round(math.log2(max(1.0, image_size[0] / layer.grid[0]))) for layer in layers]
    wanted = [stride.bit_length() - 1 for stride in STRIDES]
    if len(set(octaves)) == 1:
        ends = [math.ceil(len(layers) * quarter / len(STRIDES)) - 1 for quarter in range(1, len(STRIDES) + 1)]
        chosen = ends
    else:
        last = {octave: number for number, octave in enumerate(octaves)}
        chosen = [last[min(last, key=lambda octave: (abs(octave - goal), -octave))] for goal in wanted]
    return tuple(
        Level(stride, number, layers[number].width, octaves[number] - goal)
        for stride, goal, number in zip(STRIDES, wanted, chosen, strict=True)
    )


def _resampler(width: int, octaves: int) -> nn.Module:
    """Build transposed convolutions that double a map, or poolings that halve it, ``octaves`` times."""
    if octaves <= 0:
        return nn.Sequential(*(nn.MaxPool2d(2, ceil_mode=True) for _ in range(-octaves)))
    groups = NORM_GROUPS if width % NORM_GROUPS == 0 else 1
    parts: list[nn.Module] = []
    for number in range(octaves):
        if number:
            parts += [nn.GroupNorm(groups, width), nn.GELU()]
        parts.append(nn.ConvTranspose2d(width, width, kernel_size=2, stride=2))
    return nn.Sequential(*parts)


def fit_image_size(encoder: Encoder, image_size: Size) -> None:
    """Resize a backbone to ``image_size``, or to a larger size at which it runs.

    Raises:
        UsageError: the backbone runs at none of the sizes tried; the message gives the reason at the first.
    """
    steps = [multiple * encoder.stride for multiple in MULTIPLES]
    squares = ((max(image_size),) * 2,) if image_size[0] != image_size[1] else ()
    sizes = [
        (_up(height, step), _up(width, step)) for height, width in (image_size, *squares) for step in steps
    ]
    reason = ""
    for size in dict.fromkeys(sizes):
        try:
            _try_size(encoder, size)
        except (UsageError, *MODEL_ERRORS) as error:
            reason = reason or first_line(error)
            continue
        encoder.set_image_size(size)
        return
    height, width = image_size
    raise UsageError(f"image_size = {height}x{width}: {encoder.model_name} does not run there: {reason}")


def _up(side: int, step: int) -> int:
    """Round up to a multiple of ``step``."""
    return step * -(-side // step)


def _try_size(encoder: Encoder, size: Size) -> None:
    """Raise an error unless a copy of the backbone runs at a size."""
    old, name, kwargs = encoder.image_size, encoder.model_name, encoder.model_kwargs
    try:
        with torch.device("meta"):
            model, _ = resize(weightless(encoder.model), name, kwargs, old, size)
        look_at(model.eval(), name, size, encoder.in_chans)
    except (UsageError, *MODEL_ERRORS):  # some models read tensor values, which the meta device does not have
        model, _ = resize(copy.deepcopy(encoder.model), name, kwargs, old, size)
        look_at(model.eval(), name, size, encoder.in_chans)


def freeze_unused(pyramid: FeaturePyramid) -> list[str]:
    """Freeze the parameters that no map depends on, such as a classifier's norm; return their names."""
    was_training = pyramid.training
    pyramid.eval()
    try:
        used = _with_gradients(weightless(pyramid), pyramid, "meta")
    except MODEL_ERRORS:
        device = next(pyramid.parameters()).device
        used = _with_gradients(pyramid, pyramid, device)
    finally:
        pyramid.train(was_training)
    unused = [name for name, p in pyramid.named_parameters() if p.requires_grad and name not in used]
    for name in unused:
        pyramid.get_parameter(name).requires_grad_(False)
    return unused


@torch.enable_grad()
def _with_gradients(module: nn.Module, pyramid: FeaturePyramid, device: torch.device | str) -> set[str]:
    """Names of the trainable parameters of a pyramid, or of its copy ``module``, that the maps depend on."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    images = torch.zeros(1, pyramid.encoder.in_chans, *pyramid.image_size, device=device)
    total = torch.stack([map_.sum() for map_ in module(images)]).sum()
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
