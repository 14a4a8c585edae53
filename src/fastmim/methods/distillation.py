"""FastMIM with distillation (paper: section 5.6): a method whose features also learn to match a teacher's.

L = L_method + weight * sum_i | sigma_i(z_i^S) - z_i^T |, the mean over positions and channels of each pair i.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmim.encoders.resize import Resampler, carry_inside
from fastmim.errors import UsageError
from fastmim.methods.base import Method, Reconstruction
from fastmim.methods.settings import DistillConfig
from fastmim.mim.grids import shrink_map
from fastmim.system.size import Size

PARTS = 4  # parts of either network; by default the last layers of the parts are compared
INSIDE = "method."  # prefix of the names of the method's parameters


class Pair(NamedTuple):
    """Indices, from 0, of a student layer and the teacher layer that it is compared with."""

    student: int
    teacher: int

    def __str__(self) -> str:
        return f"{self.student}:{self.teacher}"


def pairs_of(config: DistillConfig, student: int, teacher: int) -> tuple[Pair, ...]:
    """Return the configured pairs of layers, or the default ones.

    Args:
        config: settings of the distillation.
        student, teacher: number of layers of each network.

    Raises:
        UsageError: a network does not have a layer of a pair.
    """
    if not config.layers:
        parts = min(PARTS, student, teacher)
        ends = (
            [-(-part * count // parts) - 1 for part in range(1, parts + 1)] for count in (student, teacher)
        )
        return tuple(Pair(*pair) for pair in zip(*ends, strict=True))
    pairs = tuple(Pair(*map(int, text.split(":"))) for text in config.layers)
    for pair in pairs:
        for who, number, count in (("student", pair.student, student), ("teacher", pair.teacher, teacher)):
            if number >= count:
                raise UsageError(f"distill.layers = {pair}: the {who} has layers 0 to {count - 1}")
    return pairs


class DistillationOutput(NamedTuple):
    """Output of a method with distillation for a batch."""

    loss: Tensor
    """Training loss, a float32 scalar."""
    reconstruction: Reconstruction
    """Output of the method."""
    distillation: Tensor
    """Unweighted distance from the teacher's features, a float32 scalar."""


class Distilled(nn.Module):
    """Train a method and match a teacher's features, in one pass through the backbone.

    The teacher is not part of this module: its features are inputs, in addition to images and masks.

    Args:
        method: a method whose encoder sees every position of the image in the original layout.
        student_layers: layers of the encoder that are compared.
        teacher_widths: channels of the teacher's map for each of these layers.
        weight, normalize: see `DistillConfig`.
    """

    def __init__(
        self,
        method: Method,
        student_layers: Sequence[int],
        teacher_widths: Sequence[int],
        weight: float = 1.0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        method.encoder.check_keeping()
        self.method = method
        self.student_layers = tuple(student_layers)
        self.weight = weight
        self.normalize = normalize
        widths = [method.encoder.layers[layer].width for layer in student_layers]
        self.project = nn.ModuleList(
            nn.Conv2d(width, wanted, 1) for width, wanted in zip(widths, teacher_widths, strict=True)
        )

    def forward(self, images_BCHW: Tensor, mask: Tensor, *teacher_features: Tensor) -> DistillationOutput:
        """Run the method, and compare the student's layers with the teacher's features.

        Args:
            images_BCHW, mask: inputs of the method.
            teacher_features: the teacher's maps (B, D, h, w) of the unmasked images, one per layer, at most
                as fine as the student's.
        """
        with self.method.encoder.capture(self.student_layers) as kept:
            reconstruction = self.method(images_BCHW, mask)
        distances = [
            self._distance(project, map_, lesson)
            for project, map_, lesson in zip(self.project, kept.maps, teacher_features, strict=True)
        ]
        distillation = torch.stack(distances).sum()
        return DistillationOutput(
            reconstruction.loss + self.weight * distillation, reconstruction, distillation
        )

    def _distance(self, project: nn.Module, map_BDhw: Tensor, lesson_BDhw: Tensor) -> Tensor:
        """Mean absolute difference over images, positions and the teacher's channels."""
        with torch.autocast(map_BDhw.device.type, enabled=False):
            shrunk = shrink_map(map_BDhw.float(), (lesson_BDhw.shape[2], lesson_BDhw.shape[3]))
        projected = project(shrunk)
        with torch.autocast(map_BDhw.device.type, enabled=False):
            student, teacher = projected.float(), lesson_BDhw.float()
            if self.normalize:
                student, teacher = _standardised(student), _standardised(teacher)
            return F.l1_loss(student, teacher)

    def set_image_size(self, image_size: Size) -> Resampler:
        """Change the image size by `Method.set_image_size`; the projections do not depend on the size."""
        return carry_inside(INSIDE, self.method.set_image_size(image_size))


def _standardised(features_BDhw: Tensor) -> Tensor:
    """Standardise the channels of each position to mean 0 and variance 1."""
    moved = features_BDhw.movedim(1, -1)
    return F.layer_norm(moved, moved.shape[-1:]).movedim(-1, 1)
