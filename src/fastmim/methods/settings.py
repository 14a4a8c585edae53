"""Names and settings of the methods, and which settings each method uses. This module needs no torch."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fastmim.errors import UsageError
from fastmim.system.bounds import PositiveFloat, PositiveInt, check_bounds
from fastmim.system.size import Size

MethodName = Literal["fastmim", "simmim", "maskfeat", "mae", "lomar", "ummae", "greenmim", "fcmae"]


def _pairs_as_text(value: Any) -> Any:
    """Convert pairs to text: [[2, 5]] and 2:5 become ["2:5"]."""
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
    """Distillation of a teacher's features, in addition to the method's task (paper: section 5.6)."""

    teacher: str = ""
    """Teacher whose features the backbone also learns: a run's folder, an encoder.safetensors, timm:NAME for
    timm's weights, or with --distill.model a .safetensors or .pth of its weights; none: random weights, for a
    trial. Default: no teacher."""
    model: str | None = None
    """timm name of the teacher, if its file does not contain one; or the package.module:factory that the file
    names, which is imported only if given here."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the teacher's model, as JSON."""
    layers: Annotated[tuple[str, ...], BeforeValidator(_pairs_as_text)] = ()
    """Pairs STUDENT:TEACHER of blocks (of pyramids: stages), counted from 0: 5:11 11:23. Default: the last
    block of each quarter of both networks."""
    weight: PositiveFloat = 1.0
    """Factor of the distance of the features in the loss."""
    normalize: bool = False
    """Standardise the features of each position to mean 0 and variance 1 before they are compared, so that
    neither the teacher's scale nor a few large channels dominate. The paper's formula does not do this."""
    size: int | tuple[int, int] | None = None
    """Side, or height and width, of the teacher's images in pixels. Default: the student's image size."""
    cache: str | None = None
    """Folder that keeps the teacher's features for other runs with the same crops: the same data, seed, batch
    and image size, and the same layers of the teacher. Default: features are not kept."""

    def __post_init__(self) -> None:
        for pair in self.layers:
            if not re.fullmatch(r"\d+:\d+", str(pair)):
                raise UsageError(
                    f"distill.layers = {pair}: pairs STUDENT:TEACHER of numbers from 0 are needed, as 5:11 "
                    "(in YAML in quotation marks)"
                )
        check_bounds(self, "distill")
        if self.size is not None and min(self.teacher_size((0, 0))) < 2:
            raise UsageError(f"distill.size = {self.size} must be at least 2 pixels")

    def teacher_size(self, image_size: Size) -> Size:
        """(H, W) of the teacher's input, for images of ``image_size``."""
        if self.size is None:
            return image_size
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True)
class LoMaRConfig:
    """Windows of LoMaR; no other method uses these settings."""

    windows: PositiveInt = 4
    """Windows per image; they may overlap."""
    window: Annotated[int, Field(ge=2)] = 7
    """Side of a window, in patches."""

    def __post_init__(self) -> None:
        check_bounds(self, "lomar")


@dataclass(frozen=True)
class UMMAEConfig:
    """Secondary masking of UM-MAE; no other method uses these settings."""

    secondary_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of the sampled patches that are replaced by a mask token."""

    def __post_init__(self) -> None:
        check_bounds(self, "ummae")


@dataclass(frozen=True)
class Traits:
    """Properties of a method, and its use of the settings."""

    ignored_settings: tuple[str, ...] = ()
    """Shared settings that the method does not use, by their dotted names."""
    config_group: str | None = None
    """Group of settings that only this method uses."""
    encodes_all_tokens: bool = False
    """Whether the encoder sees every position of the image, masked or not, in the original layout."""


INPUT_MASKING = Traits(encodes_all_tokens=True)
DROPPING = Traits(ignored_settings=("mask.place",))
TRAITS: dict[MethodName, Traits] = {
    "fastmim": INPUT_MASKING,
    "simmim": INPUT_MASKING,
    "maskfeat": INPUT_MASKING,
    "mae": DROPPING,
    "lomar": Traits(ignored_settings=("mask.place", "mask.pattern"), config_group="lomar"),
    "ummae": Traits(
        ignored_settings=("mask.place", "mask.pattern", "mask.ratio"), config_group="ummae"
    ),  # it samples a quarter
    "greenmim": DROPPING,
    "fcmae": DROPPING,
}


def unused_settings(name: MethodName) -> tuple[str, ...]:
    """Settings and groups of settings that the method does not use."""
    groups = {other.config_group for other in TRAITS.values() if other.config_group} - {
        TRAITS[name].config_group
    }
    return (*TRAITS[name].ignored_settings, *sorted(groups))
