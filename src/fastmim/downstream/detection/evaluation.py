"""Measure a detector on the validation images, in all processes of a run."""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from lightning_fabric import Fabric
from torch import nn

from fastmim.data.annotations.instances import InstanceImages
from fastmim.data.loading.dataset import UnreadableRecord
from fastmim.data.loading.dense import EvalSamples
from fastmim.downstream.detection.prediction import DetectionPredictor, as_results, detect_all
from fastmim.downstream.detection.rcnn import Detector
from fastmim.downstream.detection.scores import DetectionScores, score

if TYPE_CHECKING:
    from fastmim.system.size import Size


def measure_detection(
    predictor: DetectionPredictor,
    samples: EvalSamples,
    data: InstanceImages,
    batch: int,
    workers: int,
    fabric: Fabric,
) -> DetectionScores:
    """Detect in this process's share of the images, and score those of all processes together.

    Every process of a run calls this, and gets the same scores.
    """
    predictor.model.eval()
    results: list[dict[str, Any]] = []
    sizes: dict[int, Size] = {}
    unreadable: list[UnreadableRecord] = []
    mine = data.indices[fabric.global_rank :: fabric.world_size]
    with torch.no_grad(), fabric.autocast():
        for image, found in detect_all(predictor, samples, mine, batch, workers):
            if isinstance(image, UnreadableRecord):
                unreadable.append(image)
                continue
            assert found is not None
            sizes[image.index] = image.original
            results += as_results(found, data.image_ids[image.index], data.category_ids)
    if fabric.world_size > 1:
        everywhere: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(everywhere, (results, sizes, unreadable))
        results = [row for part, _, _ in everywhere for row in part]
        sizes = {index: size for _, part, _ in everywhere for index, size in part.items()}
        unreadable = [record for *_, part in everywhere for record in part]
    return score(results, data, sizes, unreadable, predictor_has_masks(predictor.model))


def predictor_has_masks(model: nn.Module) -> bool:
    """Whether a detector predicts masks."""
    return isinstance(model, Detector) and model.heads.has_mask()
