"""Configuration of object detection and instance segmentation (paper: table 5, table 13)."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from fastmim.config.run import BatchSize
from fastmim.config.transfer import DenseConfig
from fastmim.data.settings import JitterConfig
from fastmim.errors import UsageError
from fastmim.system.bounds import Chance, PositiveFloat, PositiveInt, check_bounds
from fastmim.train.settings import OptimConfig, ScheduleConfig

LEVELS = 5  # maps of the feature pyramid, at strides 4 to 64


@dataclass(frozen=True)
class RcnnConfig:
    """Mask R-CNN with a feature pyramid network (He et al. 2017), or Faster R-CNN without masks."""

    masks: Literal["auto", "yes", "no"] = "auto"
    """Whether masks are predicted. auto: if the training images have masks."""
    upgraded: bool = False
    """Batch norms in the pyramid and all heads, two hidden convolutions in the region proposal network, four
    convolutions and one hidden layer in the box head (Li et al. 2021)."""
    channels: PositiveInt = 256
    """Channels of the feature pyramid and of the heads' convolutions."""
    hidden: PositiveInt = 1024
    """Width of the box head's hidden layers."""
    anchors: tuple[PositiveInt, ...] = (32, 64, 128, 256, 512)
    """Side of the anchors in pixels, at strides 4, 8, 16, 32 and 64."""
    regions: PositiveInt = 512
    """Regions of an image, drawn from the proposals, that the heads are trained on; fewer take less time."""
    aligned: bool = True
    """Shift regions by half a pixel when they are pooled, which is exact; torchvision's own models do not."""
    score: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Least score of a detection."""
    overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
    """IoU above which the weaker of two detections of a class is dropped (NMS)."""
    detections: PositiveInt = 100
    """Most detections in an image."""

    def __post_init__(self) -> None:
        check_bounds(self, "head")
        if len(self.anchors) != LEVELS:
            raise UsageError(f"head.anchors = {self.anchors}: {LEVELS} sides are needed, one a stride")


@dataclass(frozen=True)
class DetectConfig(DenseConfig):
    """Settings of `fastmim detect`."""

    verb = "detect"

    data: str = ""
    """Images with boxes, and masks for Mask R-CNN: a folder in the layout of COCO (annotations/*.json),
    Pascal VOC (XML) or YOLO (images/ and labels/)."""
    annotations: tuple[str, ...] = ()
    """COCO's JSON files below --data: of training and validation, or one of both. Default: found by name."""
    images: tuple[str, ...] = ()
    """Folders of the images of --annotations, below --data; one for each file, or one for all."""
    image_size: int | tuple[int, int] = 1024
    """Size of the canvas in pixels: side, or height and width. Images are scaled to fit, and padded."""
    epochs: PositiveFloat = 36.0
    """Passes over the training images (paper: 25, 36 or 100)."""
    batch_size: BatchSize = 32
    """Images per optimiser step, over all devices and micro-batches (paper: 32)."""
    evaluations: PositiveInt = 5
    """Maximum number of evaluations, evenly spaced over the run."""
    paste: Chance = 0.0
    """Probability that objects of another image are pasted on a training image (simple copy-paste)."""
    head: RcnnConfig = field(default_factory=RcnnConfig)
    jitter: JitterConfig = field(default_factory=lambda: JitterConfig(scale=(0.1, 2.0), distort=False))
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(base_lr=6.4e-4, betas=(0.9, 0.999), weight_decay=0.1)
    )
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images and not self.annotations:
            raise UsageError(f"images = {', '.join(self.images)} go with --annotations")
        if self.paste and self.head.masks == "no":
            raise UsageError(f"paste = {self.paste} needs masks, but head.masks = no")
