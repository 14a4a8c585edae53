"""FastMIM with distillation (paper: section 5.6): a method whose features also follow a teacher's.

L = L_method + weight * sum_i | sigma_i(z_i^S) - z_i^T |, the mean over places and channels of each pair i.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator
from torch import Tensor, nn

from fastmim.encoders.resize import Carry, carry_inside
from fastmim.errors import UsageError
from fastmim.methods.base import Method, Reconstruction
from fastmim.mim.grids import Size, shrink_map

PARTS = 4  # of either network; by default the ends of each are compared
INSIDE = "method."  # what the names of the method's own parameters begin with


def _pairs_as_text(value: Any) -> Any:
    """[[2, 5]] and 2:5 are ["2:5"]."""
    if isinstance(value, str):
        return tuple(value.replace(",", " ").split())
    if isinstance(value, list | tuple):
        return tuple(
            ":".join(map(str, pair)) if isinstance(pair, list | tuple) and len(pair) == 2 else pair
            for pair in value
        )
    return value


@dataclass(frozen=True)
class DistillConfig:
    """A teacher for the features, beside the method's own task (paper: section 5.6)."""

    teacher: str = ""
    """Whose features the backbone learns, too: a run's folder, an encoder.safetensors, timm:NAME for timm's
    weights; or with --distill.model a .safetensors or .pth of timm's keys, or a released checkpoint as
    mae:FILE, simmim:FILE or fastmim:FILE; none: new weights, to try it. Default: no teacher."""
    model: str | None = None
    """timm name of the teacher, where a file does not say it; or the package.module:factory that it names,
    without which that is not imported."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that model, as JSON."""
    layers: Annotated[tuple[str, ...], BeforeValidator(_pairs_as_text)] = ()
    """Pairs STUDENT:TEACHER of blocks (of pyramids: stages), counted from 0: 5:11 11:23. Default: the last
    of each quarter of both."""
    weight: float = 1.0
    """What the distance of the features is multiplied by."""
    normalize: bool = False
    """Compare each place's features with mean 0 and variance 1, so that neither the teacher's scale nor a few
    large channels decide. The paper's formula does not."""
    size: int | tuple[int, int] | None = None
    """Side, or height and width, of the teacher's images in pixels. Default: the student's."""
    cache: str | None = None
    """Folder that keeps the teacher's features for other runs that see the very same crops: the same data,
    seed, batch and image size, and the same layers of the teacher. Default: none is kept."""

    def __post_init__(self) -> None:
        for pair in self.layers:
            if not re.fullmatch(r"\d+:\d+", str(pair)):
                raise UsageError(
                    f"distill.layers = {pair}: pairs STUDENT:TEACHER of numbers from 0 are needed, as 5:11 "
                    "(in YAML in quotation marks)"
                )
        if not 0 < self.weight < math.inf:
            raise UsageError(f"distill.weight = {self.weight} must be above 0 and finite")
        if self.size is not None and min(self.teacher_size((0, 0))) < 2:
            raise UsageError(f"distill.size = {self.size} must be at least 2 pixels")

    def teacher_size(self, image_size: Size) -> Size:
        """(H, W) of what the teacher sees, for images of ``image_size``."""
        if self.size is None:
            return image_size
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Pair(NamedTuple):
    """Two layers that are compared, counted from 0."""

    student: int
    teacher: int

    def __str__(self) -> str:
        return f"{self.student}:{self.teacher}"


def pairs_of(config: DistillConfig, student: int, teacher: int) -> tuple[Pair, ...]:
    """The pairs that are asked for, of networks with so many layers, or the default ones.

    Raises:
        UsageError: a network has no such layer.
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


class Taught(NamedTuple):
    """What a method with a teacher made of a batch."""

    loss: Tensor
    """Scalar, float32: what is trained on."""
    reconstruction: Reconstruction
    """The method's own."""
    distillation: Tensor
    """Scalar, float32: the distance from the teacher's features, not weighted."""


class Distilled(nn.Module):
    """A method and its distance from a teacher, by one pass through the backbone.

    The teacher itself is no part of this: its features (lessons) come in beside images and masks.

    Args:
        method: one whose encoder sees each place of the image where it is.
        student_layers: those of the encoder that are compared.
        teacher_widths: channels of what each is compared with.
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

    def forward(self, images_BCHW: Tensor, mask: Tensor, *lessons: Tensor) -> Taught:
        """
        Args:
            images_BCHW, mask: as the method takes them.
            lessons: the teacher's maps (B, D, h, w) of the unmasked images, one a layer, at most as fine as
                the student's.
        """
        with self.method.encoder.keeping(self.student_layers) as kept:
            reconstruction = self.method(images_BCHW, mask)
        distances = [
            self._distance(project, map_, lesson)
            for project, map_, lesson in zip(self.project, kept.maps, lessons, strict=True)
        ]
        distillation = torch.stack(distances).sum()
        return Taught(reconstruction.loss + self.weight * distillation, reconstruction, distillation)

    def _distance(self, project: nn.Module, map_BDhw: Tensor, lesson_BDhw: Tensor) -> Tensor:
        """Mean absolute difference over images, places and the teacher's channels."""
        with torch.autocast(map_BDhw.device.type, enabled=False):
            shrunk = shrink_map(map_BDhw.float(), (lesson_BDhw.shape[2], lesson_BDhw.shape[3]))
        projected = project(shrunk)
        with torch.autocast(map_BDhw.device.type, enabled=False):
            student, teacher = projected.float(), lesson_BDhw.float()
            if self.normalize:
                student, teacher = _standardised(student), _standardised(teacher)
            return F.l1_loss(student, teacher)

    def set_image_size(self, image_size: Size) -> Carry:
        """As `Method.set_image_size`; the projections know no size."""
        return carry_inside(INSIDE, self.method.set_image_size(image_size))


def _standardised(features_BDhw: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the channels of each place."""
    moved = features_BDhw.movedim(1, -1)
    return F.layer_norm(moved, moved.shape[-1:]).movedim(-1, 1)
