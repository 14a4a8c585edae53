"""Predict whole images by sliding windows, and score them by one confusion matrix over all pixels."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmim.config.segment import SlidingConfig
from fastmim.data.annotations.masks import IGNORED
from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.data.loading.dense import EvalDense, EvalImage, EvalSamples, to_device
from fastmim.data.loading.workers import answers
from fastmim.system.size import Size


def window_starts(side: int, window: int, step: int) -> list[int]:
    """Return the first pixel of each window along one side; the last window ends with the image."""
    if side <= window:
        return [0]
    return [*range(0, side - window, step), side - window]


@torch.no_grad()
def slide(model: nn.Module, images_BCHW: Tensor, window: Size, step: float, most: int) -> Tensor:
    """Average the logits of overlapping windows: (B, classes, H, W), float32.

    An image that is smaller than the window is padded with zeros.

    Args:
        model: (B, C, *window) -> logits (B, classes, *window).
        images_BCHW: normalised images, of any size.
        window: (H, W) of the model's input.
        step: distance between windows, as a share of the window.
        most: windows that are computed at a time.
    """
    height, width = images_BCHW.shape[2:]
    padded = F.pad(images_BCHW, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
    tall, wide = padded.shape[2:]
    steps = [max(1, int(side * step)) for side in window]
    tops, lefts = window_starts(tall, window[0], steps[0]), window_starts(wide, window[1], steps[1])
    places = list(itertools.product(range(len(padded)), tops, lefts))
    total: Tensor | None = None
    counts = padded.new_zeros(1, 1, tall, wide)
    for top, left in itertools.product(tops, lefts):
        counts[:, :, top : top + window[0], left : left + window[1]] += 1
    for group in _batched(places, most):
        cuts = [padded[b, :, top : top + window[0], left : left + window[1]] for b, top, left in group]
        logits = model(torch.stack(cuts)).float()
        if total is None:
            total = logits.new_zeros(len(padded), logits.shape[1], tall, wide)
        for (b, top, left), part in zip(group, logits, strict=True):
            total[b, :, top : top + window[0], left : left + window[1]] += part
    assert total is not None
    return (total / counts)[:, :, :height, :width]


def _batched(places: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(places), most):
        yield places[start : start + most]


@dataclass(frozen=True)
class Predictor:
    """Predict the probabilities of the classes at each pixel of a whole image.

    Args:
        model: images of the window's size -> logits of the same size.
        window: (H, W) of the model's input.
        config: windows, scales and flips.
        mean, std: of the channels, on the device of the model.
        most: windows that are computed at a time.
    """

    model: nn.Module
    window: Size
    config: SlidingConfig
    mean: Tensor
    std: Tensor
    most: int

    @torch.no_grad()
    def __call__(self, image: EvalImage) -> Tensor:
        """Return probabilities (classes, H, W) at the original size, mean over scales and flips."""
        total: Tensor | None = None
        count = 0
        for pixels_HWC in image.pixels_HWC:
            images_1CHW = to_device(pixels_HWC[None], self.mean, self.std)
            for flips in (False, True) if self.config.flip else (False,):
                given = images_1CHW.flip(3) if flips else images_1CHW
                logits = self._logits(given)
                logits = logits.flip(3) if flips else logits
                full = F.interpolate(logits, image.original, mode="bilinear", align_corners=False)
                probabilities = full.softmax(1)[0]
                total = probabilities if total is None else total + probabilities
                count += 1
        assert total is not None
        return total / count

    def _logits(self, images_1CHW: Tensor) -> Tensor:
        if self.config.mode == "slide":
            return slide(self.model, images_1CHW, self.window, self.config.step, self.most)
        height, width = images_1CHW.shape[2:]
        padded = F.pad(images_1CHW, (0, self.window[1] - width, 0, self.window[0] - height))
        logits: Tensor = self.model(padded).float()
        return logits[:, :, :height, :width]


@dataclass(frozen=True)
class SegmentationScores:
    """Confusion matrix over all pixels that are not ignored."""

    confusion: NDArray[np.int64]
    """(classes, classes): rows are true classes, columns predicted ones."""
    images: int = 0
    unreadable: int = 0
    example: UnreadableRecord | None = None
    """One of the unreadable images of this process."""
    image_iou: dict[int, float] = field(default_factory=dict)
    """Mean IoU of each image of this process, over the classes in it, per cent."""

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, per cent; NaN if a class is neither true nor predicted."""
        return iou_of(self.confusion)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur, per cent."""
        return _mean(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        """Per cent of the pixels whose class is right."""
        return 100 * float(np.trace(self.confusion)) / max(int(self.confusion.sum()), 1)

    @property
    def mean_accuracy(self) -> float:
        """Mean over the true classes of the per cent of their pixels that are right."""
        true = self.confusion.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return _mean(100 * np.diag(self.confusion) / np.where(true > 0, true, np.nan))


def iou_of(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the IoU of each class, per cent; NaN for a class without pixels."""
    right = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - right
    return 100 * right / np.where(union > 0, union, np.nan)


def confusion_of(predicted_HW: Tensor, true_HW: Tensor, classes: int) -> Tensor:
    """Count pixels by true class (rows) and predicted class: (classes, classes), int64."""
    counted = true_HW != IGNORED
    pairs = true_HW[counted].long() * classes + predicted_HW[counted].long()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def measure_segmentation(
    predictor: Predictor,
    samples: EvalSamples,
    indices: NDArray[np.int64],
    classes: int,
    workers: int,
    fabric: Fabric,
) -> SegmentationScores:
    """Predict this process's share of the images, and add the counts of all processes.

    Every process of a run calls this.
    """
    predictor.model.eval()
    device = predictor.mean.device
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    image_iou: dict[int, float] = {}
    unreadable: list[UnreadableRecord] = []
    mine = indices[fabric.global_rank :: fabric.world_size]
    questions = [mine[place : place + 1] for place in range(len(mine))]
    with torch.no_grad(), fabric.autocast():
        for found in answers(EvalDense(samples), questions, min(workers, len(mine))):
            unreadable += found.unreadable
            for image in found.images:
                predicted = predictor(image).argmax(0)
                true = torch.from_numpy(image.arrays["mask"]).to(device)
                counts = confusion_of(predicted, true, classes)
                confusion += counts
                image_iou[image.index] = _mean(iou_of(counts.cpu().numpy()))
    counted = torch.tensor([len(image_iou), len(unreadable)], device=device)
    if fabric.world_size > 1:
        confusion = fabric.all_reduce(confusion, reduce_op="sum")  # type: ignore[assignment]
        counted = fabric.all_reduce(counted, reduce_op="sum")  # type: ignore[assignment]
    images, broken = counted.tolist()
    example = unreadable[0] if unreadable else None
    return SegmentationScores(confusion.cpu().numpy(), images, broken, example, image_iou)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
