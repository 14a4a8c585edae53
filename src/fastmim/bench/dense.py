"""Compare a training step of the detector and the segmenter with that of other libraries."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from fastmim.bench.measure import Figure, medians, side_by_side
from fastmim.config.detect import RcnnConfig
from fastmim.config.segment import UperNetConfig
from fastmim.downstream.detection.model import DetectionModel, Objects
from fastmim.downstream.detection.rcnn import Detector
from fastmim.downstream.segmentation.model import SegmentationModel
from fastmim.downstream.segmentation.uper_net import Segmenter
from fastmim.encoders.build import build_encoder
from fastmim.encoders.pyramid import FeaturePyramid
from fastmim.train.optim import build_adamw, guarded_step
from fastmim.train.settings import OptimConfig

BACKBONE = "resnet50"
CLASSES = 80
OBJECTS = 8  # in each image
LEAST = 0.95  # of the other library's speed
NOT_COMPARED = "segmentation-models-pytorch is not installed: UperNet is not compared"


def bench_dense(
    size: int, batch: int, rounds: int, device: torch.device, say: Callable[[str], None]
) -> list[Figure]:
    """Measure steps of Mask R-CNN and UperNet against those of torchvision and segmentation-models-pytorch.

    Both have a ResNet-50 and the same head widths, images and objects, and are timed in turns.

    Args:
        size: side of the images in pixels.
        batch: images per step.
        rounds: measured steps of each.
    """
    say(f"{BACKBONE} at {size}x{size}, batch {batch}, {CLASSES} classes, {OBJECTS} objects in an image")
    images = torch.rand(batch, 3, size, size, device=device)
    figures = [_detection(images, rounds)]
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        say(NOT_COMPARED)
        return figures
    return [*figures, _segmentation(images, rounds)]


def _detection(images: Tensor, rounds: int) -> Figure:
    batch, _, size, _ = images.shape
    targets = [_objects(size, images.device) for _ in range(batch)]
    torch.manual_seed(0)
    ours = DetectionModel(Detector(_pyramid(size), CLASSES, RcnnConfig(), masks=True), None).to(images.device)
    theirs: Any = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    theirs.transform.min_size, theirs.transform.max_size = (size,), size
    theirs = theirs.to(images.device).train()
    objects = Objects([(size, size)] * batch, targets)

    def step_of_theirs() -> Tensor:
        losses: dict[str, Tensor] = theirs(list(images), targets)
        return torch.stack(list(losses.values())).sum()

    contestants = {
        "ours": _step(ours.train(), lambda: ours(images, objects).loss),
        "theirs": _step(theirs, step_of_theirs),
    }
    return _figure("step of Mask R-CNN", "torchvision's maskrcnn_resnet50_fpn", contestants, images, rounds)


def _segmentation(images: Tensor, rounds: int) -> Figure:
    import segmentation_models_pytorch as smp

    batch, _, size, _ = images.shape
    targets = torch.randint(CLASSES, (batch, size, size), device=images.device)
    config = UperNetConfig(channels=256, aux_weight=0.0)
    ours = SegmentationModel(Segmenter(_pyramid(size), CLASSES, config), None, 0.0).to(images.device)
    theirs = smp.UPerNet(BACKBONE, encoder_weights=None, decoder_channels=256, classes=CLASSES)
    theirs = theirs.to(images.device).train()
    contestants = {
        "ours": _step(ours.train(), lambda: ours(images, targets).loss),
        "theirs": _step(theirs, lambda: F.cross_entropy(theirs(images), targets)),
    }
    name = "UPerNet of segmentation-models-pytorch"
    return _figure("step of UperNet", name, contestants, images, rounds)


def _pyramid(size: int) -> FeaturePyramid:
    return FeaturePyramid(build_encoder(BACKBONE, (size, size)))


def _objects(size: int, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(OBJECTS, 2, 2, generator=generator) * (size - 2)
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 2], dim=1)
    return {
        "boxes": boxes.to(device),
        "labels": torch.randint(1, CLASSES + 1, (OBJECTS,), generator=generator).to(device),
        "masks": torch.ones(OBJECTS, size, size, dtype=torch.uint8, device=device),
    }


def _step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a whole training step: loss, gradients and AdamW."""
    optimizer = build_adamw(module, OptimConfig())

    def step() -> None:
        loss().backward()  # type: ignore[no-untyped-call]
        guarded_step(optimizer, 1e-6, None)

    return step


def _figure(
    name: str, against: str, contestants: dict[str, Callable[[], None]], images: Tensor, rounds: int
) -> Figure:
    seconds = medians(side_by_side(contestants, images.device, rounds))
    ours, theirs = (len(images) / seconds[who] for who in ("ours", "theirs"))
    ratio = ours / theirs
    target = f"at least {LEAST:g}x"
    return Figure(name, ours, "images/s", against, theirs, ratio, target=target, met=ratio >= LEAST)
