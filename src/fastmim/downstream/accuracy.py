"""Top-1 and top-5 accuracy of a classifier, over images and over classes."""

from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.data.loading.eval_loader import EvalLoader

MOST_GUESSES = 5


class Accuracy(NamedTuple):
    """Counts per class, (classes,) float64."""

    right: NDArray[np.float64]
    """Images whose class has the highest score."""
    among_five: NDArray[np.float64]
    """Images whose class is among the five highest scores."""
    images: NDArray[np.float64]
    unreadable: int = 0
    """Number of unreadable images, which are not counted."""
    example: UnreadableRecord | None = None
    """One of the unreadable images of this process."""

    @property
    def top1(self) -> float:
        """Top-1 accuracy, per cent of the images."""
        return 100 * float(self.right.sum() / max(self.images.sum(), 1))

    @property
    def top5(self) -> float:
        return 100 * float(self.among_five.sum() / max(self.images.sum(), 1))

    @property
    def mean_class_top1(self) -> float:
        """Top-1 accuracy, mean over the classes that have images, per cent."""
        there = self.images > 0
        return 100 * float((self.right[there] / self.images[there]).mean())

    def per_class(self, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        return {
            name: {"top1": 100 * right / images if images else None, "images": int(images)}
            for name, right, images in zip(classes, self.right.tolist(), self.images.tolist(), strict=True)
        }


@torch.no_grad()
def measure_accuracy(
    model: nn.Module, views: EvalLoader, labels: NDArray[np.int64], classes: int, fabric: Fabric
) -> Accuracy:
    """Evaluate a classifier on ``views``; every process evaluates its share, and all return the total.

    Args:
        labels: class of each image of the source.
    """
    was_training = model.training
    model.eval()
    scores: list[Tensor] = []
    shown: list[NDArray[np.int64]] = []
    unreadable: list[UnreadableRecord] = []
    for images, indices, broken in views:
        unreadable += broken
        if len(images):
            with fabric.autocast():
                scores.append(model(images).float())
            shown.append(indices)
    model.train(was_training)
    mine = count_hits(torch.cat(scores).cpu(), labels[np.concatenate(shown)], classes) if shown else None
    counts = np.zeros((3, classes)) if mine is None else np.stack(mine[:3])
    total = torch.from_numpy(np.append(counts, len(unreadable))).float().to(fabric.device)
    if fabric.world_size > 1:
        total = fabric.all_reduce(total, reduce_op="sum")  # type: ignore[assignment]
    *flat, broken_of_all = total.cpu().double().tolist()
    right, five, images_of = np.array(flat).reshape(3, classes)
    return Accuracy(right, five, images_of, int(broken_of_all), next(iter(unreadable), None))


def count_hits(scores_BK: Tensor, labels_B: NDArray[np.int64], classes: int) -> Accuracy:
    """Count the images of each class, and those among them with a correct first or top-five prediction."""
    guesses = scores_BK.topk(min(MOST_GUESSES, classes)).indices.numpy()
    hits = guesses == labels_B[:, None]
    right, five, images = (
        np.bincount(labels_B[chosen], minlength=classes).astype(np.float64)
        for chosen in (hits[:, 0], hits.any(1), np.ones(len(labels_B), dtype=bool))
    )
    return Accuracy(right, five, images)
