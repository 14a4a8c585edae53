"""Teacher of a distillation: a frozen backbone that encodes the unmasked images."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.encoders.adapter import Encoder
from fastmim.mim.grids import coarser, shrink_map
from fastmim.system.size import Size

HALF_MAX = torch.finfo(torch.float16).max


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, by which images are normalised."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Teacher(nn.Module):
    """Map images, normalised as in the run, to the teacher's maps, one per compared layer.

    The teacher is never trained: its parameters take no gradient, and `train` keeps it in evaluation mode.
    Its maps are rounded to half precision with and without a cache, so that both give the same run.

    Args:
        encoder: the teacher's backbone, at the size of its input.
        run: statistics by which the run normalises images.
        own: statistics by which images were normalised when the teacher was trained.
        layers: layers of the teacher that are compared.
        student_grids: grid of the student's map for each layer; a finer map of the teacher is averaged to it.
        digest: digest of the teacher's weights.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        encoder: Encoder,
        run: Statistics,
        own: Statistics,
        layers: Sequence[int],
        student_grids: Sequence[Size],
        digest: str,
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.layers = tuple(layers)
        self.grids = tuple(
            coarser(encoder.layers[layer].grid, grid)
            for layer, grid in zip(layers, student_grids, strict=True)
        )
        self.digest = digest
        self.same_scale = run == own
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in run)
        own_mean, own_std = (torch.tensor(values).view(1, -1, 1, 1) for values in own)
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Shape (D, h, w) of each map."""
        widths = [self.encoder.layers[layer].width for layer in self.layers]
        return [(width, *grid) for width, grid in zip(widths, self.grids, strict=True)]

    @property
    def bytes_per_image(self) -> int:
        """Bytes of all maps of an image, in half precision."""
        return 2 * sum(width * h * w for width, h, w in self.shapes)

    def blank(self, count: int) -> list[Tensor]:
        """Return maps of zeros in the shapes for ``count`` images, without a forward pass."""
        return [
            torch.zeros(count, *shape, dtype=torch.half, device=self.scale.device) for shape in self.shapes
        ]

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        if not self.same_scale:
            images_BCHW = images_BCHW * self.scale + self.shift
        if images_BCHW.shape[2:] != self.encoder.image_size:
            images_BCHW = F.interpolate(
                images_BCHW, self.encoder.image_size, mode="bicubic", antialias=True, align_corners=False
            )
        maps = self.encoder.forward_layers(images_BCHW, self.layers)
        with torch.autocast(images_BCHW.device.type, enabled=False):
            shrunk = [shrink_map(map_.float(), grid) for map_, grid in zip(maps, self.grids, strict=True)]
            return [map_.clamp(-HALF_MAX, HALF_MAX).half() for map_ in shrunk]
